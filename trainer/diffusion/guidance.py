"""Guidance: networks and denoisers in, a denoiser that leans towards a condition out."""

from __future__ import annotations

import torch
from torch import Tensor

from .denoiser import Denoiser, Network
from .process import Diffusion, Estimate


def guided_denoiser(diffusion: Diffusion, network: Network, scale: float) -> Denoiser:
    """Classifier-free guidance (Ho & Salimans 2021): null + scale · (conditional - null).

    `network` is called once on the doubled batch [conditional; null] and must hold the conditions
    in that order. Guidance is linear, so acting on x_0 is the same as acting on ε or v. A learned
    variance is the conditional half's.
    """

    def estimate(x_t: Tensor, t: Tensor) -> Estimate:
        double_x, double_t = torch.cat([x_t, x_t]), torch.cat([t, t])
        both = diffusion.estimate(network(double_x, double_t), double_x, double_t)
        conditional, null = both.x0.chunk(2)
        fraction = None if both.fraction is None else both.fraction.chunk(2)[0]
        return Estimate(null + scale * (conditional - null), fraction)

    return estimate
