"""Groups of the order read ahead: one in use, the next of its stream on the way."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.batch import Needs
from trainer.loader.order import GroupKey, Ints
from trainer.loader.shards import Halves, Shards


class Raw(NamedTuple):
    """Samples as they are stored, in the order in which they are stored."""

    draws: Ints  # [n], ascending: which samples these are
    places: Ints  # [n], where below the sample of each draw is
    numbers: Ints  # [m], of the samples in the whole run, ascending
    jpegs: list[bytes | None]  # [m] or []
    captions: list[str]  # [m] or []
    image_embedding: Halves | None  # [m, D]
    text_embedding: Halves | None  # [m, D]


def read_raw(
    shards: Shards,
    needs: Needs,
    draws: Ints,
    samples: Ints,
    first: int,
    has_pictures: Callable[[Ints], NDArray[np.bool_]],
) -> Raw:
    """What `needs` wants of the `samples` [n] of `draws` [n].

    `first` is the run's number of sample 0. Pictures that are there already are left out:
    `has_pictures` tells which, by the run's numbers.
    """
    samples, places = np.unique(samples, return_inverse=True)  # two epochs may want the same
    jpegs: list[bytes | None] = []
    if needs.image_size is not None:
        known = has_pictures(first + samples)
        read = iter(shards.jpegs(samples[~known]))
        jpegs = [None if here else next(read) for here in known.tolist()]
    captions = shards.captions(samples) if needs.tokens else []
    image, text = shards.embeddings(samples) if needs.embeddings else (None, None)
    return Raw(draws, places, first + samples, jpegs, captions, image, text)


class Ahead:
    """Gives groups in the order of their streams; threads read the next of each meanwhile.

    `read` may give None: there is nothing to read of that group. A context manager.
    """

    def __init__(
        self,
        read: Callable[[GroupKey], Raw | None],
        following: Callable[[GroupKey], GroupKey],
        threads: int,
    ) -> None:
        self._read, self._following = read, following
        self._pool = ThreadPoolExecutor(threads, "loader-read")
        self._begun: dict[int, dict[GroupKey, Future[Raw | None]]] = {}  # by stream

    def group(self, key: GroupKey) -> Raw:
        """A group; earlier ones of its stream are let go of."""
        begun = self._begun.setdefault(key.stream, {})
        after = self._following(key)
        for other in [other for other in begun if other not in (key, after)]:
            begun.pop(other).cancel()
        for wanted in (key, after):
            if wanted not in begun:
                begun[wanted] = self._pool.submit(self._read, wanted)
        raw = begun[key].result()
        if raw is None:
            raise ValueError(f"{key}: none of its samples is this reader's")
        return raw

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)
