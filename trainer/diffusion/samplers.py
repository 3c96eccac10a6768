"""Samplers: flat functions from noise to a sample, over any denoiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .denoiser import Denoiser
from .process import Diffusion

StepNoise = Callable[[int], Tensor]
"""Step number → standard normal noise shaped like x; a function, so that seeds decide it."""


def ddim(
    denoise: Denoiser,
    diffusion: Diffusion,
    x: Tensor,
    timesteps: Sequence[int],
    eta: float = 0.0,
    step_noise: StepNoise | None = None,
) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12 and 16) from x_T to an estimate of x_0.

    `x` is standard normal [B, …]; `timesteps` run from noisy to clean; η = 0 is deterministic,
    η = 1 has the variance of ancestral sampling. η > 0 needs `step_noise`.
    """
    if eta > 0 and step_noise is None:
        raise ValueError(f"eta: got {eta}, which needs step_noise")
    alphas = [float(diffusion.alphas[t]) for t in timesteps] + [1.0]
    for i, t in enumerate(timesteps):
        batch_t = torch.full((x.shape[0],), t, dtype=torch.int64, device=x.device)
        x0 = denoise(x, batch_t).x0
        if i == len(timesteps) - 1:
            return x0
        now, then = alphas[i], alphas[i + 1]
        epsilon = diffusion.epsilon_from(x0, x, batch_t)
        sigma = eta * ((1 - then) / (1 - now) * (1 - now / then)) ** 0.5
        x = then**0.5 * x0 + max(1 - then - sigma**2, 0.0) ** 0.5 * epsilon
        if eta > 0 and step_noise is not None:
            x = x + sigma * step_noise(i)
    raise ValueError("timesteps: got none, expected at least one")


def ancestral(
    denoise: Denoiser,
    diffusion: Diffusion,
    x: Tensor,
    timesteps: Sequence[int],
    step_noise: StepNoise,
) -> Tensor:
    """Ancestral sampling (Ho et al. 2020, eq. 7) with the posterior variance of the spaced steps.

    `x` is standard normal [B, …]; `timesteps` run from noisy to clean.
    """
    alphas = [float(diffusion.alphas[t]) for t in timesteps] + [1.0]
    for i, t in enumerate(timesteps):
        batch_t = torch.full((x.shape[0],), t, dtype=torch.int64, device=x.device)
        x0 = denoise(x, batch_t).x0
        if i == len(timesteps) - 1:
            return x0
        now, then = alphas[i], alphas[i + 1]
        alpha = now / then
        mean = (then**0.5 * (1 - alpha) * x0 + alpha**0.5 * (1 - then) * x) / (1 - now)
        variance = (1 - then) / (1 - now) * (1 - alpha)
        x = mean + variance**0.5 * step_noise(i)
    raise ValueError("timesteps: got none, expected at least one")
