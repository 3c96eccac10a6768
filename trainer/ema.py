"""Exponential average of the fp32 masters, kept where the masters are: no communication."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.config import EmaConfig
from trainer.engine.base import Flat

KIND = "ema"


class Ema:
    """Averages each flat of masters that this rank owns; `updates` is counted by the run's state.

    The decay of update u (from 0) is min(decay, (1 + u) / (warmup + u)), so that early weights are
    forgotten soon.
    """

    def __init__(self, flats: Sequence[Flat], config: EmaConfig) -> None:
        self._config = config
        self._masters = [flat.master.detach() for flat in flats]
        self._shadows = [master.clone() for master in self._masters]

    def decay(self, updates: int) -> float:
        """The decay of the next update after `updates` of them."""
        warmup = self._config.warmup
        if warmup == 0:
            return self._config.decay
        return min(self._config.decay, (1 + updates) / (warmup + updates))

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Move the average towards the masters."""
        torch._foreach_lerp_(self._shadows, self._masters, 1 - self.decay(updates))

    def attach(self, flats: Sequence[Flat]) -> list[Flat]:
        """The same flats with the average beside masters and moments, to be saved."""
        return [
            Flat(flat.pieces, {**flat.tensors, KIND: shadow})
            for flat, shadow in zip(flats, self._shadows, strict=True)
        ]

    def alone(self, flats: Sequence[Flat]) -> list[Flat]:
        """Flats of the average only, to be filled from a checkpoint."""
        return [
            Flat(flat.pieces, {KIND: shadow})
            for flat, shadow in zip(flats, self._shadows, strict=True)
        ]

    @property
    def shadows(self) -> list[Tensor]:
        """The averages, fp32, one per flat."""
        return self._shadows
