"""Ranks that are threads of one test: they gather what DeepSpeed's would."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class ThreadRank:
    """One of several ranks; `gather` waits for the others."""

    def __init__(self, rank: int, values: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.world_size = rank, len(values)
        self._values, self._barrier = values, barrier

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value."""
        self._values[self.rank] = value
        self._barrier.wait(60)
        values = list(self._values)
        self._barrier.wait(60)
        return values


def on_ranks(count: int, work: Callable[[ThreadRank], T]) -> list[T]:
    """What `work` gives on each of several ranks."""
    values: list[Any] = [None] * count
    barrier = threading.Barrier(count)
    with ThreadPoolExecutor(count) as pool:
        ranks = [ThreadRank(rank, values, barrier) for rank in range(count)]
        return list(pool.map(work, ranks))
