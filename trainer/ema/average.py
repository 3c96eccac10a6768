"""Running averages of the fp32 masters, kept where the masters are: no communication."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.config import EmaConfig
from trainer.ema.profiles import KIND, profiles_of
from trainer.engine.base import Flat


class Ema:
    """Averages each flat of masters that this rank owns, once for every profile of the config.

    `updates` is counted by the run's state, one for all profiles.
    """

    def __init__(self, flats: Sequence[Flat], config: EmaConfig) -> None:
        self._profiles = profiles_of(config)
        self._masters = [flat.master.detach() for flat in flats]
        self._shadows = {
            kind: [master.clone() for master in self._masters] for kind in self._profiles
        }

    @property
    def kinds(self) -> tuple[str, ...]:
        """What checkpoints know the averages by; the first is `ema`."""
        return tuple(self._profiles)

    def decay(self, updates: int, kind: str = KIND) -> float:
        """The decay of the next update after `updates` of them."""
        return self._profiles[kind](updates)

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Move all averages towards the masters."""
        for kind, decay in self._profiles.items():
            torch._foreach_lerp_(self._shadows[kind], self._masters, 1 - decay(updates))

    def attach(self, flats: Sequence[Flat]) -> list[Flat]:
        """The same flats with the averages beside masters and moments, to be saved."""
        own = self.alone(flats, self.kinds)
        return [
            Flat(flat.pieces, {**flat.tensors, **averages.tensors})
            for flat, averages in zip(flats, own, strict=True)
        ]

    def alone(self, flats: Sequence[Flat], kinds: Sequence[str]) -> list[Flat]:
        """Flats of averages only, to be filled from a checkpoint or kept as a snapshot."""
        return [
            Flat(flat.pieces, {kind: self._shadows[kind][index] for kind in kinds})
            for index, flat in enumerate(flats)
        ]

    def shadows(self, kind: str = KIND) -> list[Tensor]:
        """The averages of one kind, fp32, one per flat."""
        return self._shadows[kind]
