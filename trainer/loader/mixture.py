"""Several DATASETs mixed by weights: which of them stands at a position, and its how-manieth draw.

Positions go round a fixed circle of columns, each of which belongs to one source; so the shares
are exact in every round, and each source runs through its own epochs, nothing twice or missing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer.loader.order import Ints

_OFF = 0.2  # of a weight: by how much its share of the columns may miss it


class Mixture:
    """Maps positions of a run to draws of its sources, and back."""

    def __init__(self, columns: Sequence[int]) -> None:
        """`columns`: the number of each column's source, in the order of positions."""
        self._sources = np.asarray(columns, dtype=np.int64)
        self._turns = np.empty_like(self._sources)  # of a column among those of its source
        self._columns: list[Ints] = []
        for source in range(int(self._sources.max()) + 1):
            own = np.flatnonzero(self._sources == source)
            self._turns[own] = np.arange(len(own))
            self._columns.append(own)

    def split(self, positions: Ints) -> list[tuple[int, Ints, Ints]]:
        """(source, indices in `positions`, draws) of each source that stands at `positions`."""
        rounds, columns = np.divmod(positions, len(self._sources))
        sources = self._sources[columns]
        found = []
        for source in np.unique(sources).tolist():
            chosen = np.flatnonzero(sources == source)
            turns = len(self._columns[source])
            found.append((source, chosen, rounds[chosen] * turns + self._turns[columns[chosen]]))
        return found

    def positions(self, source: int, draws: Ints) -> Ints:
        """Where `draws` of a source stand."""
        own = self._columns[source]
        rounds, turns = np.divmod(draws, len(own))
        return rounds * len(self._sources) + own[turns]


def columns_of(weights: Sequence[float], streams: int) -> list[int]:
    """The sources of `streams` columns in proportion to `weights`, spread as evenly as can be.

    Raises:
        ValueError: there are too few columns for these weights.
    """
    shares = np.asarray(weights, dtype=np.float64) / sum(weights)
    if len(shares) == 1:
        return [0]
    owed = np.zeros(len(shares))
    columns = []
    for _ in range(streams):
        owed += shares
        chosen = int(owed.argmax())
        owed[chosen] -= 1
        columns.append(chosen)
    given = np.bincount(columns, minlength=len(shares)) / streams
    wrong = np.flatnonzero(np.abs(given - shares) > _OFF * shares)
    if len(wrong):
        first = int(wrong[0])
        raise ValueError(
            f"weights: {weights[first]} of {sum(weights)} would be {given[first]:.4f} with "
            f"{streams} streams, expected about {shares[first]:.4f}; raise `streams`"
        )
    return columns
