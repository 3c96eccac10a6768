"""Clipping and skipping inside the fused optimizer kernel, and the one read of a step's numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trainer.engine.base import StepStats


def guard(
    optimizer: torch.optim.AdamW, norm: Tensor, sums: Tensor, clip: float, scale: float = 1.0
) -> None:
    """Let the fused kernel clip and, when loss or gradient is not finite, change nothing.

    `norm` is that of the gradient proper, which was multiplied by `scale`. All go through the
    attributes that gradient scalers use, so the device is not waited for.
    """
    numbers = torch.cat([norm.reshape(1).float(), sums])
    optimizer.found_inf = not_finite(numbers)  # type: ignore[attr-defined]
    divisor = ((norm + 1e-6) / clip).clamp(min=1.0) if clip > 0 else torch.ones_like(norm)
    optimizer.grad_scale = divisor * scale  # type: ignore[attr-defined]


def not_finite(numbers: Tensor) -> Tensor:
    """1.0 when a number is infinite or none at all, otherwise 0.0; stays on the device."""
    return (~torch.isfinite(numbers).all()).float()


def read_stats(norm: Tensor, sums: Tensor) -> StepStats:
    """Bring a step's numbers to the host in one transfer."""
    grad_norm, *values = torch.cat([norm.reshape(1).float(), sums]).tolist()
    applied = all(map(math.isfinite, (grad_norm, *values)))
    return StepStats(grad_norm, applied, values)
