"""Thresholding: denoisers whose pixels stay in range, however strong the guidance."""

from __future__ import annotations

import torch
from torch import Tensor

from .denoiser import Denoiser
from .process import Estimate


def clipped(inner: Denoiser, limit: float = 1.0) -> Denoiser:
    """Static thresholding: pixels stay in [-limit, limit]."""

    def estimate(x_t: Tensor, t: Tensor) -> Estimate:
        found = inner(x_t, t)
        return found._replace(x0=found.x0.clamp(-limit, limit))

    return estimate


def dynamically_thresholded(inner: Denoiser, quantile: float = 0.995) -> Denoiser:
    """Dynamic thresholding (Saharia et al. 2022, section 2.3): clip at a quantile, then rescale.

    Keeps strong guidance from saturating colours; the limit is never below 1.
    """

    def estimate(x_t: Tensor, t: Tensor) -> Estimate:
        found = inner(x_t, t)
        x0 = found.x0
        limit = torch.quantile(x0.abs().flatten(1), quantile, dim=1).clamp(min=1.0)  # [B]
        limit = limit.view(-1, *[1] * (x0.dim() - 1))
        return found._replace(x0=x0.clamp(-limit, limit) / limit)

    return estimate
