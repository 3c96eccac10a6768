"""The face that every objective shows to the loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from trainer.batch import Batch, Needs
from trainer.rng import SampleRandom


class Objective(Protocol):
    """Turns `(model, batch)` into per-sample losses; holds no trained parameter of its own.

    The loop calls `begin` once per optimizer step with this rank's micro-batches, then `loss` for
    each of them. Every random draw comes from `random`, so that a sample's loss is a function of
    (weights, seed, position) alone. Under ZeRO-3 a model's own parameters are present only inside
    its `forward`: call the model or its sub-modules, not methods that read parameters directly.
    """

    @property
    def needs(self) -> Needs:
        """What the loader has to deliver."""
        ...

    def begin(self, model: nn.Module, batches: Sequence[Batch]) -> object | None:
        """Prepare a step over this rank's micro-batches; the result is passed to each `loss`."""
        ...

    def loss(
        self,
        model: nn.Module,
        batch: Batch,
        random: SampleRandom,
        context: object | None,
        index: int,
    ) -> Tensor:
        """Return the loss of each sample, float32 [B]; `index` counts the micro-batches."""
        ...

    def times(self, random: SampleRandom) -> Tensor | None:
        """Each sample's timestep as a share of the diffusion, in [0, 1), [B]; None: it has none."""
        ...


class Parts(NamedTuple):
    """What a stage trains: the model's weights follow torch's generator, which the loop seeds."""

    model: nn.Module
    objective: Objective
