"""Denoisers: what a sampler calls, and what wraps a network into one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .process import Diffusion

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(x_t [B, …], t int64 [B]) → estimate of x_0 [B, …] in fp32."""

Network = Callable[[Tensor, Tensor], Tensor]
"""(x_t [B, …], t int64 [B]) → the network's raw output [B, …]."""


def denoiser(diffusion: Diffusion, network: Network) -> Denoiser:
    """A network's output turned into its estimate of x_0."""

    def estimate(x_t: Tensor, t: Tensor) -> Tensor:
        return diffusion.x0_from(network(x_t, t), x_t, t)

    return estimate


def guided_denoiser(diffusion: Diffusion, network: Network, scale: float) -> Denoiser:
    """Classifier-free guidance (Ho & Salimans 2021): null + scale · (conditional - null).

    `network` is called once on the doubled batch [conditional; null] and must hold the conditions
    in that order. Guidance is linear, so acting on x_0 is the same as acting on ε or v.
    """

    def estimate(x_t: Tensor, t: Tensor) -> Tensor:
        double_x, double_t = torch.cat([x_t, x_t]), torch.cat([t, t])
        conditional, null = diffusion.x0_from(
            network(double_x, double_t), double_x, double_t
        ).chunk(2)
        return null + scale * (conditional - null)

    return estimate


def clipped(inner: Denoiser, limit: float = 1.0) -> Denoiser:
    """Static thresholding: pixels stay in [-limit, limit]."""

    def estimate(x_t: Tensor, t: Tensor) -> Tensor:
        return inner(x_t, t).clamp(-limit, limit)

    return estimate


def dynamically_thresholded(inner: Denoiser, quantile: float = 0.995) -> Denoiser:
    """Dynamic thresholding (Saharia et al. 2022, section 2.3): clip at a quantile, then rescale.

    Keeps strong guidance from saturating colours; the limit is never below 1.
    """

    def estimate(x_t: Tensor, t: Tensor) -> Tensor:
        x0 = inner(x_t, t)
        limit = torch.quantile(x0.abs().flatten(1), quantile, dim=1).clamp(min=1.0)  # [B]
        limit = limit.view(-1, *[1] * (x0.dim() - 1))
        return x0.clamp(-limit, limit) / limit

    return estimate
