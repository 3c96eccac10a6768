"""Γ of Analytic-DPM: the mean square of the scores of noised data, gathered batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .denoiser import Denoiser
from .process import Diffusion


class ScoreNorms:
    """Streaming means of ‖score‖² / dimensions at some timesteps (Bao et al. 2022, eq. 9).

    The score of x_t is -ε / √(1 - ᾱ_t), with the network's ε.
    """

    def __init__(self, diffusion: Diffusion, timesteps: Sequence[int]) -> None:
        self._diffusion = diffusion
        self.samples = 0
        self._means = dict.fromkeys(timesteps, 0.0)  # of ε²

    def add(self, denoise: Denoiser, x0: Tensor, noise: Callable[[int], Tensor]) -> None:
        """Take in a batch x_0 [B, …]; `noise(t)` is standard normal, shaped like it."""
        self.samples += len(x0)
        for t, mean in self._means.items():
            batch_t = torch.full((len(x0),), t, dtype=torch.int64, device=x0.device)
            x_t = self._diffusion.add_noise(x0, batch_t, noise(t))
            epsilon = self._diffusion.epsilon_from(denoise(x_t, batch_t).x0, x_t, batch_t)
            found = epsilon.double().square().mean().item()
            self._means[t] = mean + (found - mean) * len(x0) / self.samples

    def gamma(self) -> dict[int, float]:
        """Γ of each timestep."""
        alphas = self._diffusion.alphas
        return {t: mean / (1 - float(alphas[t])) for t, mean in self._means.items()}
