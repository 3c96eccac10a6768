"""Denoisers: what a sampler calls, and how a network becomes one."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .process import Diffusion, Estimate

Denoiser = Callable[[Tensor, Tensor], Estimate]
"""(x_t [B, …], t int64 [B]) → Estimate: x_0 and, where it is learned, the variance, in fp32."""

Network = Callable[[Tensor, Tensor], Tensor]
"""(x_t [B, …], t int64 [B]) → the network's raw output [B, …]."""


def denoiser(diffusion: Diffusion, network: Network) -> Denoiser:
    """A network's output turned into its estimate of x_0."""

    def estimate(x_t: Tensor, t: Tensor) -> Estimate:
        return diffusion.estimate(network(x_t, t), x_t, t)

    return estimate
