"""Guidance: networks and denoisers in, a denoiser that leans towards a condition out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .denoiser import Denoiser, Network
from .process import Diffusion, Estimate


def guided_denoiser(
    diffusion: Diffusion,
    network: Network,
    scale: float,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
) -> Denoiser:
    """Classifier-free guidance (Ho & Salimans 2021): null + scale · (conditional - null).

    `network` is called on the doubled batch [conditional; null] and must hold the conditions in
    that order. Guidance is linear, so acting on x_0 is the same as acting on ε or v. A learned
    variance is the conditional half's.

    `interval`: σ = √((1 - ᾱ) / ᾱ) above the first and up to the second number is guided, and no
    other (Kynkäänniemi et al. 2024); where no sample is, `network` is called on the first half of
    its conditions alone. `rescale`: φ of Lin et al. 2023, section 3.4: so far the guided x_0 gets
    back the deviation of the conditional one.
    """

    def estimate(x_t: Tensor, t: Tensor) -> Estimate:
        inside = None if interval is None else _inside(diffusion, interval, t, x_t)
        if inside is not None and not inside.any():
            return diffusion.estimate(network(x_t, t), x_t, t)
        double_x, double_t = torch.cat([x_t, x_t]), torch.cat([t, t])
        both = diffusion.estimate(network(double_x, double_t), double_x, double_t)
        conditional, null = both.x0.chunk(2)
        guided = null + scale * (conditional - null)
        if rescale:
            guided = _rescaled(guided, conditional, rescale)
        if inside is not None:
            guided = torch.where(inside, guided, conditional)
        fraction = None if both.fraction is None else both.fraction.chunk(2)[0]
        return Estimate(guided, fraction)

    return estimate


def _inside(diffusion: Diffusion, interval: tuple[float, float], t: Tensor, like: Tensor) -> Tensor:
    low, high = interval
    signal, noise = diffusion.levels(t, like)
    return (noise > low * signal) & (noise <= high * signal)


def _rescaled(guided: Tensor, conditional: Tensor, share: float) -> Tensor:
    shape = (-1, *[1] * (guided.dim() - 1))
    wanted, found = (x0.flatten(1).std(dim=1).view(shape) for x0 in (conditional, guided))
    return guided * (share * wanted / found.clamp(min=1e-12) + 1 - share)


def classifier_guided(
    inner: Denoiser,
    diffusion: Diffusion,
    log_likelihood: Callable[[Tensor, Tensor], Tensor],
    scale: float = 1.0,
) -> Denoiser:
    """Classifier guidance (Dhariwal & Nichol 2021, algorithm 2).

    `log_likelihood`: (x_t [B, …], t [B]) → log p(y | x_t) [B] with a gradient. At scale 1 samples
    are those of p(x | y).
    """

    def estimate(x_t: Tensor, t: Tensor) -> Estimate:
        with torch.inference_mode(False), torch.enable_grad():
            leaf = _leaf(x_t)
            (gradient,) = torch.autograd.grad(log_likelihood(leaf, t.clone()).sum(), leaf)
        return _moved(inner(x_t, t), diffusion, x_t, t, scale * gradient)

    return estimate


def clip_guided(
    inner: Denoiser,
    diffusion: Diffusion,
    similarity: Callable[[Tensor], Tensor],
    scale: float = 1.0,
) -> Denoiser:
    """CLIP guidance (Nichol et al. 2022, section 2.4) by a CLIP that knows clean pictures.

    `similarity`: the estimate of x_0 [B, …] → [B] with a gradient, for instance a CLIP's logit of
    picture and caption. The gradient is taken with respect to x_t, through the network.
    """

    def estimate(x_t: Tensor, t: Tensor) -> Estimate:
        with torch.inference_mode(False), torch.enable_grad():
            leaf = _leaf(x_t)
            found = inner(leaf, t.clone())
            (gradient,) = torch.autograd.grad(similarity(found.x0).sum(), leaf)
        fraction = None if found.fraction is None else found.fraction.detach()
        return _moved(Estimate(found.x0.detach(), fraction), diffusion, x_t, t, scale * gradient)

    return estimate


def _leaf(x_t: Tensor) -> Tensor:
    """A copy that has gradients, also of what was made under inference_mode."""
    return x_t.clone().detach().requires_grad_()


def _moved(
    found: Estimate, diffusion: Diffusion, x_t: Tensor, t: Tensor, gradient: Tensor
) -> Estimate:
    """ε - √(1 - ᾱ) · gradient, told as x_0; where there is no signal x_t has no say in it."""
    signal, noise = diffusion.levels(t, x_t)
    reach = torch.where(signal > 0, noise**2 / signal.clamp(min=1e-12), torch.zeros_like(signal))
    return found._replace(x0=found.x0 + reach * gradient)
