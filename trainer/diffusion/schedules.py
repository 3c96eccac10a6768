"""Noise schedules: the cumulative signal level ᾱ_t of a diffusion with T steps."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Schedule = Literal["cosine", "linear"]
Spacing = Literal["even", "trailing"]
_MAX_BETA = 0.999


def cosine_alphas(steps: int) -> Tensor:
    """ᾱ of the cosine schedule (Nichol & Dhariwal 2021, eq. 17), β at most 0.999. float64 [T]."""
    s = 0.008
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    level = torch.cos((t + s) / (1 + s) * math.pi / 2) ** 2  # [T + 1]
    betas = (1 - level[1:] / level[:-1]).clamp(max=_MAX_BETA)
    return torch.cumprod(1 - betas, dim=0)


def linear_alphas(steps: int) -> Tensor:
    """ᾱ of the linear schedule (Ho et al. 2020), scaled so that any T spans the same noise.

    float64 [T].
    """
    scale = 1000 / steps
    betas = torch.linspace(scale * 1e-4, scale * 0.02, steps, dtype=torch.float64)
    return torch.cumprod(1 - betas.clamp(max=_MAX_BETA), dim=0)


def alphas_cumprod(schedule: Schedule, steps: int) -> Tensor:
    """ᾱ_t for t = 0 … T-1 (t = 0 is the least noisy). float64 [T]."""
    if steps < 1:
        raise ValueError(f"steps: got {steps}, expected at least 1")
    return {"cosine": cosine_alphas, "linear": linear_alphas}[schedule](steps)


def zero_terminal_snr(alphas: Tensor) -> Tensor:
    """ᾱ shifted and scaled so that the last one is 0 and the first stays (Lin et al. 2023, alg. 1).

    √ᾱ is what is moved. With it the noisiest x_t is noise alone, as sampling takes it to be.
    """
    signal = alphas.sqrt()
    first, last = signal[0].clone(), signal[-1].clone()
    return ((signal - last) * (first / (first - last))) ** 2


def spaced_timesteps(total: int, steps: int, spacing: Spacing = "even") -> list[int]:
    """`steps` of the `total` timesteps, noisiest first.

    `even`: both ends included. `trailing` (Lin et al. 2023, table 2): the noisiest included, and as
    far between the cleanest and x_0 as between any two.

    Raises ValueError when more steps are asked for than there are.
    """
    if not 1 <= steps <= total:
        raise ValueError(f"steps: got {steps}, expected 1 to {total}")
    if spacing == "trailing":
        return [round(total - i * total / steps) - 1 for i in range(steps)]
    if steps == 1:
        return [total - 1]
    return [round(i * (total - 1) / (steps - 1)) for i in reversed(range(steps))]
