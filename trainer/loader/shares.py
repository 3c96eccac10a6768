"""Who reads what: a pure function of (ranks, workers).

Position p belongs to rank p mod N, and of that rank to worker (p div N) mod W. Streams take turns
in a fixed round, so where N · W divides their number each worker reads whole streams.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.loader.order import Ints


@dataclass(frozen=True)
class Share:
    """The part of all positions that one worker of one rank reads."""

    rank: int = 0
    ranks: int = 1
    worker: int = 0
    workers: int = 1

    def owns(self, positions: Ints) -> NDArray[np.bool_]:
        """Which of `positions` are this worker's."""
        turns, ranks = np.divmod(positions, self.ranks)
        own: NDArray[np.bool_] = (ranks == self.rank) & (turns % self.workers == self.worker)
        return own

    def rows(self, positions: Ints) -> Ints:
        """The indices, in the rank's own `positions`, of this worker's."""
        return np.flatnonzero(self.owns(positions))


def rank_positions(start: int, batch: int, rank: int, ranks: int) -> Ints:
    """A rank's positions of the global batch [start, start + batch), ascending."""
    return np.arange(start + (rank - start) % ranks, start + batch, ranks, dtype=np.int64)
