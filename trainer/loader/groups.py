"""Groups of the order read ahead: one in use, the next of its stream on the way."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.batch import Needs
from trainer.loader.order import GroupKey, Ints
from trainer.loader.shards import Shards
from trainer.loader.vectors import Norms, Vectors


class Raw(NamedTuple):
    """Samples as they are stored, in the order in which they are stored."""

    draws: Ints  # [n], ascending: which samples these are
    places: Ints  # [n], where below the sample of each draw is
    numbers: Ints  # [m], of the samples in the whole run, ascending
    jpegs: list[bytes | None]  # [m] or []
    captions: list[str]  # [m] or []
    norms: Norms | None = None  # [m, 2], of image and text


Read = Callable[[GroupKey, Vectors | None], Raw | None]
"""Reads a group, its embeddings into the first rows of the memory given."""


def read_raw(
    shards: Shards,
    needs: Needs,
    draws: Ints,
    samples: Ints,
    first: int,
    has_pictures: Callable[[Ints], NDArray[np.bool_]],
    vectors: Vectors | None,
) -> Raw:
    """What `needs` wants of the `samples` [n] of `draws` [n].

    `first` is the run's number of sample 0. Pictures that are there already are left out:
    `has_pictures` tells which, by the run's numbers. Embeddings come into the first rows of
    `vectors`, in the same order as all the rest.
    """
    samples, places = np.unique(samples, return_inverse=True)  # two epochs may want the same
    jpegs: list[bytes | None] = []
    if needs.image_size is not None:
        known = has_pictures(first + samples)
        read = iter(shards.jpegs(samples[~known]))
        jpegs = [None if here else next(read) for here in known.tolist()]
    captions = shards.captions(samples) if needs.tokens else []
    if vectors is not None:
        shards.read_embeddings(samples, vectors)
    norms = shards.norms(samples) if needs.norms else None
    return Raw(draws, places, first + samples, jpegs, captions, norms)


class Berths:
    """Memory for the embeddings of three groups of each stream: one in use, the one before, which
    a batch may have ended with and not copied yet, and one being read."""

    EACH = 3  # berths of a stream

    def __init__(self, vectors: Vectors | None, most: int) -> None:
        """`most`: the rows of a group."""
        self.vectors, self._most = vectors, most

    def begin(self, berth: int) -> int:
        """The first row of a berth; stream s has `EACH` of them, from `EACH` · s on."""
        return berth * self._most

    def rows(self, berth: int) -> Vectors | None:
        """A berth's memory."""
        return None if self.vectors is None else self.vectors.rows(self.begin(berth), self._most)


class _Begun(NamedTuple):
    """A group that is being read, or was, and where its embeddings lie."""

    read: Future[Raw | None]
    berth: int


class Ahead:
    """Gives groups in the order of their streams; threads read the next of each meanwhile.

    `read` may give None: there is nothing to read of that group. A context manager.
    """

    def __init__(
        self,
        read: Read,
        following: Callable[[GroupKey], GroupKey],
        threads: int,
        berths: Berths,
    ) -> None:
        self.berths = berths
        self._read, self._following = read, following
        self._pool = ThreadPoolExecutor(threads, "loader-read")
        self._begun: dict[int, dict[GroupKey, _Begun]] = {}  # by stream
        self._current: dict[int, GroupKey] = {}  # by stream

    def has(self, key: GroupKey) -> bool:
        """Whether a group is the last that was given of its stream."""
        return self._current.get(key.stream) == key

    def group(self, key: GroupKey) -> tuple[Raw, int]:
        """A group, and the row of `berths` where its embeddings begin. The one that was given
        before it of its stream stays as well, earlier ones are let go of."""
        begun = self._begun.setdefault(key.stream, {})
        if not self.has(key):
            self._begin(begun, key, self._current.get(key.stream))
            self._current[key.stream] = key
        raw = begun[key].read.result()
        if raw is None:
            raise ValueError(f"{key}: none of its samples is this reader's")
        return raw, self.berths.begin(begun[key].berth)

    def _begin(self, begun: dict[GroupKey, _Begun], key: GroupKey, before: GroupKey | None) -> None:
        """Begin to read a group and the one after it, where nothing lies that is to stay."""
        wanted = (key, self._following(key))
        for other in [other for other in begun if other not in (before, *wanted)]:
            gone = begun.pop(other)
            if not gone.read.cancel():
                wait([gone.read])  # or it would write where another one is read to
        for each in wanted:
            if each not in begun:
                first = Berths.EACH * key.stream
                taken = {other.berth for other in begun.values()}
                berth = min(set(range(first, first + Berths.EACH)) - taken)
                rows = self.berths.rows(berth)
                begun[each] = _Begun(self._pool.submit(self._read, each, rows), berth)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)
