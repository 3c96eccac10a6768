"""Embeddings on their way from files to a batch: read into memory that stays, copied out at once.

New memory costs as much as a copy, and so does every call that gives up the interpreter's lock
while other threads read: a batch is one copy of each kind, whatever number of groups it is from.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.loader.order import Ints

Halves = NDArray[np.float16]
Norms = NDArray[np.float32]


class Vectors(NamedTuple):
    """Image and text embeddings in rows, fp16 [n, D] each."""

    image: Halves
    text: Halves

    def rows(self, first: int, count: int) -> Vectors:
        """Some of the rows, in the same memory."""
        return Vectors(self.image[first : first + count], self.text[first : first + count])


def empty_vectors(rows: int, dim: int) -> Vectors:
    """Memory for `rows`; pages that are never written cost nothing."""
    return Vectors(*(np.empty((rows, dim), np.float16) for _ in range(2)))


class Gather:
    """Copies rows of vectors to rows of a batch: noted by `add`, done by `flush`."""

    def __init__(self, into: Vectors | None, rows: Ints) -> None:
        """`rows` of `into` are those of the batch that places are counted in."""
        self._into, self._rows = into, rows
        self._vectors: Vectors | None = None
        self._at: list[Ints] = []
        self._places: list[Ints] = []

    def add(self, at: Ints, vectors: Vectors | None, places: Ints) -> None:
        """Those at `places` of `vectors` are the batch's at `at`; both are looked at in `flush`."""
        if vectors is not self._vectors:
            self.flush()
            self._vectors = vectors
        self._at.append(at)
        self._places.append(places)

    def flush(self) -> None:
        """Copy what was noted."""
        if self._at and self._into is not None and self._vectors is not None:
            at, places = np.concatenate(self._at), np.concatenate(self._places)
            order = np.argsort(at)
            rows, places = evenly(self._rows[at[order]]), places[order]
            for into, vectors in zip(self._into, self._vectors, strict=True):
                if isinstance(rows, slice):  # without a copy between; "clip" needs none either
                    np.take(vectors, places, axis=0, out=into[rows], mode="clip")
                else:
                    into[rows] = vectors[places]
        self._at, self._places = [], []


def evenly(numbers: Ints) -> slice | Ints:
    """The same numbers as a slice where they are evenly spaced."""
    steps = np.diff(numbers)
    step = int(steps[0]) if len(steps) else 1
    if step <= 0 or (steps != step).any() or not len(numbers):
        return numbers
    return slice(int(numbers[0]), int(numbers[-1]) + 1, step)


class Found:
    """Where the embeddings lie of the groups that are in use, one of each stream, in one table: a
    batch is a handful of rows of very many groups, and is looked up at once."""

    def __init__(self, streams: int, most: int) -> None:
        """`most`: the places that a group takes in its stream."""
        self._firsts = np.zeros(streams, np.int64)  # place in the stream of a group's first sample
        self._rows = np.full((streams, most), -1, np.int64)  # of each place from there on

    def keep(self, stream: int, times: Ints, rows: Ints) -> None:
        """The samples at `times`, ascending, lie in `rows`; those of the group before are gone."""
        self._firsts[stream] = times[0]
        self._rows[stream] = -1
        self._rows[stream, times - times[0]] = rows

    def rows(self, streams: Ints, times: Ints) -> Ints:
        """Where each sample lies, int64 [B]; -1 where that is not known."""
        after = times - self._firsts[streams]
        most = self._rows.shape[1]
        rows: Ints = self._rows[streams, np.clip(after, 0, most - 1)]
        rows[(after < 0) | (after >= most)] = -1
        return rows
