"""Which positions a rank reads, step by step: all that the loader's processes need to know."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from trainer.batch import Batch, Needs
from trainer.config import DataConfig
from trainer.loader.arrays import Arrays
from trainer.loader.order import Ints
from trainer.loader.shares import rank_positions


@dataclass(frozen=True)
class Plan:
    """Steps 0 … `steps` - 1 of a run that stands at `start`."""

    data: DataConfig
    needs: Needs
    seed: int
    start: int  # position of the first global batch
    batch: int  # samples of a global batch
    steps: int
    rank: int
    world_size: int
    micro_batches: int

    @property
    def end(self) -> int:
        """The first position that is not read."""
        return self.start + self.steps * self.batch

    @property
    def most_rows(self) -> int:
        """Samples of this rank in a step, at most."""
        return -(-self.batch // self.world_size)

    def positions(self, step: int) -> Ints:
        """This rank's positions in a step, ascending."""
        return rank_positions(
            self.start + step * self.batch, self.batch, self.rank, self.world_size
        )

    def cut(self, arrays: Arrays, positions: Ints) -> list[Batch]:
        """A step's micro-batches: consecutive rows, as equal in number as can be."""
        count = len(positions)
        edges = [count * part // self.micro_batches for part in range(self.micro_batches + 1)]
        return [arrays.batch(positions, slice(*part)) for part in pairwise(edges)]
