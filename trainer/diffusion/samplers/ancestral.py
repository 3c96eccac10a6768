"""Ancestral sampling, with the variance of the posterior or the one that the network learned."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..process import Diffusion, Estimate
from ..transitions import log_variance, posterior_variance, posterior_weights
from .walk import Step, StepNoise, walk


def ancestral(
    denoise: Denoiser,
    diffusion: Diffusion,
    x: Tensor,
    timesteps: Sequence[int],
    step_noise: StepNoise,
) -> Tensor:
    """Ancestral sampling (Ho et al. 2020, eq. 7) over spaced steps.

    Where the estimate has a `fraction` the variance lies so far between β̃ and β of the spaced step
    (Nichol & Dhariwal 2021, eq. 15), else it is β̃.
    """
    for step in walk(diffusion, timesteps):
        found = denoise(x, step.batch(x))
        if step.last:
            break
        of_x0, of_x = posterior_weights(step.now, step.then)
        mean = (of_x0 * found.x0 + of_x * x) / (1 - step.now)
        x = mean + _deviation(found, step) * step_noise(step.number)
    return found.x0


def _deviation(found: Estimate, step: Step) -> Tensor | float:
    smallest = posterior_variance(step.now, step.then)
    if found.fraction is None:
        return math.sqrt(smallest)
    ends = found.fraction.new_tensor([math.log(smallest), math.log(1 - step.now / step.then)])
    return torch.exp(0.5 * log_variance(found.fraction, ends[0], ends[1]))
