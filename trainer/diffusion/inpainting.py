"""Sampling with a part that is known: RePaint, and denoisers that keep to what is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .denoiser import Denoiser
from .process import Diffusion, Estimate
from .transitions import posterior_variance, posterior_weights

NamedNoise = Callable[[str], Tensor]
"""What a draw is for → standard normal noise shaped like x."""


def repaint(
    denoise: Denoiser,
    diffusion: Diffusion,
    x: Tensor,
    timesteps: Sequence[int],
    known: Tensor,
    new: Tensor,
    noise: NamedNoise,
    repeats: int = 4,
) -> Tensor:
    """A sample that equals `known` where `new` is False (Lugmayr et al. 2022, algorithm 1).

    `x` is standard normal [B, …]; `new` is bool and broadcasts to it; `timesteps` run from noisy to
    clean. After each step the known part is put in with the noise of its level; going back and
    taking the step again, `repeats` times in all, lets the new part agree with it.
    """
    alphas = [float(diffusion.alphas[t]) for t in timesteps] + [1.0]
    for i, t in enumerate(timesteps):
        batch_t = torch.full((x.shape[0],), t, dtype=torch.int64, device=x.device)
        now, then = alphas[i], alphas[i + 1]
        if i == len(timesteps) - 1:
            return torch.where(new, denoise(x, batch_t).x0, known)
        for turn in range(repeats):
            x0 = denoise(x, batch_t).x0
            of_x0, of_x = posterior_weights(now, then)
            fresh = (of_x0 * x0 + of_x * x) / (1 - now)
            fresh = fresh + posterior_variance(now, then) ** 0.5 * noise(f"{i}.{turn}.new")
            kept = then**0.5 * known + (1 - then) ** 0.5 * noise(f"{i}.{turn}.known")
            below = torch.where(new, fresh, kept)
            if turn < repeats - 1:
                again = noise(f"{i}.{turn}.again")
                x = (now / then) ** 0.5 * below + (1 - now / then) ** 0.5 * again
        x = below
    raise ValueError("timesteps: got none, expected at least one")


def keeping(inner: Denoiser, known: Tensor, new: Tensor) -> Denoiser:
    """A denoiser whose estimate of x_0 is `known` where `new` (bool) is False."""

    def estimate(x_t: Tensor, t: Tensor) -> Estimate:
        found = inner(x_t, t)
        return Estimate(torch.where(new, found.x0, known), found.fraction)

    return estimate
