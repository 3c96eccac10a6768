"""A worker's way through its positions, in order: groups are read ahead and let go of."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

import numpy as np

from trainer.loader.arrays import Arrays
from trainer.loader.groups import Ahead, Raw
from trainer.loader.mixture import Mixture
from trainer.loader.order import Ints, Order
from trainer.loader.vectors import Found, Gather

Put = Callable[[Arrays, Ints, Ints, Raw, Ints], None]
"""Puts all but embeddings: arrays, rows, positions, a group, places in it."""


class Walk:
    """All pools of a mixture; ends with `close`."""

    def __init__(self, mixture: Mixture, ways: Sequence[Way]) -> None:
        self._mixture, self._ways = mixture, ways

    def fill(self, arrays: Arrays, rows: Ints, positions: Ints) -> None:
        """Put the samples at `positions`, this worker's next ones, into `rows` of `arrays`."""
        gather = Gather(arrays.vectors(), rows)
        for number, chosen, draws in self._mixture.split(positions):
            self._ways[number].fill(arrays, gather, rows, positions, chosen, draws)
        gather.flush()

    def close(self) -> None:
        """End the reading threads."""
        for way in self._ways:
            way.close()


class Way:
    """One pool's groups."""

    def __init__(self, order: Order, ahead: Ahead, put: Put, embeddings_alone: bool) -> None:
        """`embeddings_alone`: `put` has nothing to put."""
        self._order, self._ahead, self._put = order, ahead, put
        self._found = Found(order.streams, order.most) if embeddings_alone else None

    def fill(
        self,
        arrays: Arrays,
        gather: Gather,
        rows: Ints,
        positions: Ints,
        chosen: Ints,
        draws: Ints,
    ) -> None:
        """Put the samples of `draws`, those at `chosen` of `rows` and `positions`."""
        if self._found is not None:
            left = self._gather_found(self._found, gather, chosen, draws)
            chosen, draws = chosen[left], draws[left]
        moved: set[int] = set()
        for key, some in self._order.keys(draws):
            new = not self._ahead.has(key)
            if new and key.stream in moved:  # twice: what is noted of it would be read over
                gather.flush()
            at, (raw, begin) = chosen[some], self._ahead.group(key)
            if new:
                moved.add(key.stream)
                if self._found is not None:
                    _, times = self._order.times(raw.draws)
                    self._found.keep(key.stream, times, begin + raw.places)
            first = bisect_left(raw.draws, draws[some][0])  # this worker's next ones
            places = raw.places[first : first + len(at)]
            self._put(arrays, rows[at], positions[at], raw, places)
            gather.add(at, self._ahead.berths.vectors, begin + places)

    def _gather_found(self, found: Found, gather: Gather, chosen: Ints, draws: Ints) -> Ints:
        """Those of the groups in use, without a look at each group; which draws are left."""
        places = found.rows(*self._order.times(draws))
        known = places >= 0
        gather.add(chosen[known], self._ahead.berths.vectors, places[known])
        return np.flatnonzero(~known)

    def close(self) -> None:
        """End the reading threads."""
        self._ahead.close()
