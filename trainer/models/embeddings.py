"""Sinusoidal embedding of timesteps."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def timestep_embedding(t: Tensor, width: int, period: float = 10000.0) -> Tensor:
    """Sinusoids of int64 timesteps [B] (Vaswani et al. 2017): float32 [B, width], cosines first."""
    half = width // 2
    rates = torch.exp(-math.log(period) * torch.arange(half, device=t.device) / half)  # [half]
    angles = t.float()[:, None] * rates  # [B, half]
    embedding = torch.cat([angles.cos(), angles.sin()], dim=1)
    return nn.functional.pad(embedding, (0, width - 2 * half))


class TimestepMLP(nn.Module):
    """Sinusoids, then two linear layers with SiLU between: [B] → [B, width]."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.channels = channels
        self.first = nn.Linear(channels, width)
        self.second = nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        sinusoids = timestep_embedding(t, self.channels).to(self.first.weight.dtype)
        out: Tensor = self.second(nn.functional.silu(self.first(sinusoids)))
        return out
