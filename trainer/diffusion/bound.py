"""The variational bound on the negative log-likelihood, in bits per dimension.

Ho et al. 2020, eq. 5: L_0 is the likelihood of the data under the last step, L_t-1 the divergence
of each other step from the true posterior, L_T that of q(x_T | x_0) from the noise that sampling
begins with. Means are formed from the estimate of x_0, so that all parameterisations are bounded
alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .denoiser import Denoiser
from .process import Diffusion, Estimate
from .transitions import log_variance

_HALF_BIN = 1 / 255  # of 256 levels over [-1, 1]
_EDGE = 0.999


def bound_term(
    diffusion: Diffusion, found: Estimate, x0: Tensor, x_t: Tensor, t: Tensor, levels: bool
) -> Tensor:
    """L_t of each sample at its own t: bits per dimension, fp32 [B].

    Where no variance is learned it is β̃. `levels`: x_0 are pictures of 256 levels in [-1, 1], whose
    likelihood at t = 0 is that of a bin; else it is a density's.
    """
    x0, x_t = x0.float(), x_t.float()
    of_x0, of_x_t, smallest, largest = diffusion.transition(t, x0)
    true, mean = of_x0 * x0 + of_x_t * x_t, of_x0 * found.x0 + of_x_t * x_t
    log_var = smallest.expand_as(mean)
    if found.fraction is not None:
        log_var = log_variance(found.fraction, smallest, largest)
    divergence = gaussian_divergence(true, smallest, mean, log_var)
    likelihood = binned_log_likelihood if levels else gaussian_log_likelihood
    first = (t == 0).view(-1, *[1] * (x0.dim() - 1))
    nats = torch.where(first, -likelihood(x0, mean, log_var), divergence)
    return nats.flatten(1).mean(dim=1) / math.log(2)


def gaussian_divergence(mean: Tensor, log_var: Tensor, other: Tensor, other_var: Tensor) -> Tensor:
    """KL(N(mean, e^log_var) || N(other, e^other_var)) of each element, in nats."""
    ratio = log_var - other_var
    return 0.5 * (torch.exp(ratio) - 1 - ratio + (mean - other) ** 2 * torch.exp(-other_var))


def gaussian_log_likelihood(x: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """log N(x; mean, e^log_var) of each element, in nats."""
    return -0.5 * (math.log(2 * math.pi) + log_var + (x - mean) ** 2 * torch.exp(-log_var))


def binned_log_likelihood(x: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """log of the Gaussian's mass in the bin of x, one of 256 levels in [-1, 1]: Ho et al. 2020,
    eq. 13. The outermost bins reach to infinity. Nats.
    """
    narrow = torch.exp(-0.5 * log_var)
    # Mirrored, so that the bin lies in the lower tail, where log Φ is exact however far out.
    away = (x - mean).abs()
    upper = torch.special.log_ndtr((_HALF_BIN - away) * narrow)
    lower = torch.special.log_ndtr((-_HALF_BIN - away) * narrow)
    inside = upper + torch.log1p(-torch.exp((lower - upper).clamp(max=-1e-6)))
    below = torch.special.log_ndtr((x - mean + _HALF_BIN) * narrow)
    above = torch.special.log_ndtr((mean - x + _HALF_BIN) * narrow)
    return torch.where(x < -_EDGE, below, torch.where(x > _EDGE, above, inside))


def bits_per_dim(
    diffusion: Diffusion,
    denoise: Denoiser,
    x0: Tensor,
    noise: Callable[[int], Tensor],
    levels: bool = True,
) -> Tensor:
    """The whole bound of each sample, bits per dimension, fp32 [B]; asks the network T times.

    `noise(t)` is standard normal, shaped like x_0; `levels` as for `bound_term`.
    """
    total = prior_term(diffusion, x0)
    for step in range(diffusion.steps):
        t = torch.full((len(x0),), step, dtype=torch.int64, device=x0.device)
        x_t = diffusion.add_noise(x0, t, noise(step))
        total = total + bound_term(diffusion, denoise(x_t, t), x0, x_t, t, levels)
    return total


def prior_term(diffusion: Diffusion, x0: Tensor) -> Tensor:
    """L_T: what of x_0 is left in x_T. Bits per dimension, fp32 [B]."""
    last = float(diffusion.alphas[-1])
    mean, zero = last**0.5 * x0.float(), torch.zeros((), device=x0.device)
    nats = gaussian_divergence(mean, zero + math.log1p(-last), zero, zero)
    return nats.flatten(1).mean(dim=1) / math.log(2)
