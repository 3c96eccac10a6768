"""The road of a sampler: timesteps and the noise levels between which they lead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ..process import Diffusion

StepNoise = Callable[[int], Tensor]
"""Step number → standard normal noise shaped like x; a function, so that seeds decide it."""


class Step(NamedTuple):
    """From `t` to the next timestep: ᾱ now and then, which is 1 after the last."""

    number: int
    t: int
    now: float
    then: float
    last: bool

    def batch(self, x: Tensor) -> Tensor:
        """`t` for each sample of x, int64 [B]."""
        return torch.full((x.shape[0],), self.t, dtype=torch.int64, device=x.device)


def walk(diffusion: Diffusion, timesteps: Sequence[int]) -> list[Step]:
    """One step for each of the timesteps, which run from noisy to clean.

    Raises:
        ValueError: there are none, or they do not.
    """
    if not timesteps:
        raise ValueError("timesteps: got none, expected at least one")
    if any(t <= after for t, after in pairwise(timesteps)):
        raise ValueError(f"timesteps: got {list(timesteps)}, expected each below the one before")
    alphas = [*(float(diffusion.alphas[t]) for t in timesteps), 1.0]
    return [
        Step(i, t, alphas[i], alphas[i + 1], i == len(timesteps) - 1)
        for i, t in enumerate(timesteps)
    ]
