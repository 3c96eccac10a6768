"""Analytic-DPM: ancestral sampling whose variance follows from the size of the data's scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from ..denoiser import Denoiser
from ..process import Diffusion
from ..transitions import posterior_variance, posterior_weights
from .walk import StepNoise, walk


def analytic(
    denoise: Denoiser,
    diffusion: Diffusion,
    x: Tensor,
    timesteps: Sequence[int],
    step_noise: StepNoise,
    gamma: Mapping[int, float],
    noise_limit: float | None = None,
) -> Tensor:
    """Analytic-DPM (Bao et al. 2022) over spaced steps, with the mean of ancestral sampling.

    `gamma`: Γ_t of each timestep, the mean square of the scores (`trainer.diffusion.scores`).
    `noise_limit`: the mean size of the noise of the last step that has any, at most; the paper's
    appendix on clipping takes 1 or 2 levels of 255, that is 2/255 or 4/255 in [-1, 1].

    Raises:
        ValueError: `gamma` lacks a timestep.
    """
    steps = walk(diffusion, timesteps)
    missing = [step.t for step in steps if step.t not in gamma]
    if missing:
        raise ValueError(f"gamma: got none of timestep {missing[0]}")
    for step in steps:
        x0 = denoise(x, step.batch(x)).x0
        if step.last:
            break
        of_x0, of_x = posterior_weights(step.now, step.then)
        deviation = optimal_variance(step.now, step.then, gamma[step.t]) ** 0.5
        if noise_limit is not None and steps[step.number + 1].last:
            # The mean of |σ ε| is σ √(2/π).
            deviation = min(deviation, noise_limit * math.sqrt(math.pi / 2))
        x = (of_x0 * x0 + of_x * x) / (1 - step.now) + deviation * step_noise(step.number)
    return x0


def optimal_variance(now: float, then: float, gamma: float) -> float:
    """The best variance of the reverse step, given the mean square `gamma` of the scores at `now`.

    Bao et al. 2022, eq. 8 with λ² = β̃, which is the least it can be; the most is where the scores
    say nothing (theorem 2). Without signal there (ᾱ = 0) the scores cannot tell, and it is β̃.
    """
    unexplained = min(max(1 - (1 - now) * gamma, 0.0), 1.0) if now > 0 else 0.0
    alpha = now / then
    smallest = posterior_variance(now, then)
    if unexplained == 0:
        return smallest
    width = math.sqrt((1 - now) / alpha) - math.sqrt(max(1 - then - smallest, 0.0))
    return smallest + width**2 * unexplained
