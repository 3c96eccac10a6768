"""Heun's method: second order, at two calls of the network a step."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ..denoiser import Denoiser
from ..process import Diffusion
from .walk import walk

_LARGEST_FALL = 1.5  # from the second timestep of a cosine schedule on it is at most 1


def heun(denoise: Denoiser, diffusion: Diffusion, x: Tensor, timesteps: Sequence[int]) -> Tensor:
    """Heun's method on the probability flow (Karras et al. 2022, algorithm 1), deterministic.

    In x / √ᾱ and σ = √((1 - ᾱ) / ᾱ) the flow's slope is ε. A step takes the mean of the slopes at
    its two ends; the last is Euler's. So is one down from hardly any signal: there σ falls so far
    that what the network errs in ε would be multiplied.
    """
    steps = walk(diffusion, timesteps)
    for step in steps:
        t = step.batch(x)
        x0 = denoise(x, t).x0
        if step.last:
            break
        slope = diffusion.epsilon_from(x0, x, t)
        euler = step.then**0.5 * x0 + (1 - step.then) ** 0.5 * slope
        fall = math.inf  # of σ, as it moves x
        if step.now > 0:
            fall = ((1 - step.now) * step.then / step.now) ** 0.5 - (1 - step.then) ** 0.5
        if fall > _LARGEST_FALL:
            x = euler
            continue
        t = steps[step.number + 1].batch(x)
        other = diffusion.epsilon_from(denoise(euler, t).x0, euler, t)
        x = euler + 0.5 * fall * (slope - other)
    return x0
