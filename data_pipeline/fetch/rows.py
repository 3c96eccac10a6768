"""Input rows with the pictures that are behind their addresses."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
from queue import SimpleQueue
from typing import TypeVar

from data_pipeline.fetch.background import Fetching
from data_pipeline.fetch.config import FetchConfig
from data_pipeline.fetch.kept import kept_fetching
from data_pipeline.row import Rejection, Row

T = TypeVar("T")
_Arrived = SimpleQueue[tuple[int, Row, "Future[bytes]"]]


class Backlog:
    """What has been made and waits for an earlier row that is still on its way."""

    def __init__(self, most: int = 256 << 20) -> None:
        self.bytes = 0
        self._most = most

    @property
    def full(self) -> bool:
        """Whether nothing new should be begun."""
        return self.bytes > self._most


def with_pictures(
    rows: Iterator[tuple[int, Row]], config: FetchConfig, max_bytes: int, backlog: Backlog
) -> Iterator[tuple[int, Row]]:
    """(position, row) of every row, with its picture or a problem, as they arrive.

    Rows that have a picture or a problem come at once. At most `config.concurrency` addresses are
    under way or waiting to be taken, and none is begun while the backlog is full.
    """
    arrived: _Arrived = SimpleQueue()
    under_way = set[Future[bytes]]()
    with ExitStack() as stack:
        fetching: Fetching | None = None
        for position, row in rows:
            while fetching is not None and under_way and backlog.full:
                yield _take(fetching, arrived, under_way)
            if row.image is not None or row.problem is not None:
                yield position, row
                continue
            if fetching is None:
                fetching = stack.enter_context(kept_fetching(config, max_bytes))
                stack.callback(_give_up, fetching, under_way)
            future = fetching.submit(row.url or "")
            future.add_done_callback(lambda done, p=position, r=row: arrived.put((p, r, done)))  # type: ignore[misc]
            under_way.add(future)
            while len(under_way) >= config.concurrency or not arrived.empty():
                yield _take(fetching, arrived, under_way)
        while fetching is not None and under_way:
            yield _take(fetching, arrived, under_way)


def in_order(
    numbered: Iterator[tuple[int, T]], first: int, backlog: Backlog, size: Callable[[T], int]
) -> Iterator[T]:
    """The items by their numbers, which run on from `first`; what comes too early waits."""
    waiting: dict[int, T] = {}
    for number, item in numbered:
        waiting[number] = item
        backlog.bytes += size(item)
        while first in waiting:
            item = waiting.pop(first)
            backlog.bytes -= size(item)
            yield item
            first += 1
    assert not waiting, "every number comes once"


def _give_up(fetching: Fetching, under_way: set[Future[bytes]]) -> None:
    for future in under_way:
        fetching.give_up(future)


def _take(fetching: Fetching, arrived: _Arrived, under_way: set[Future[bytes]]) -> tuple[int, Row]:
    position, row, future = arrived.get()
    under_way.remove(future)
    try:
        image = future.result()
        fetching.taken(image)
        _check_hashes(image, row, fetching.unwanted)
    except Rejection as why:
        return position, replace(row, problem=why)
    return position, replace(row, image=image)


def _check_hashes(image: bytes, row: Row, unwanted: frozenset[str]) -> None:
    for name in ("md5", "sha256"):
        if name not in row.expected and not unwanted:
            continue
        found = hashlib.new(name, image, usedforsecurity=False).hexdigest()
        if found in unwanted:
            raise Rejection("opted_out", f"its {name} is on the opt-out list")
        if row.expected.get(name, found) != found:
            raise Rejection("wrong_hash", f"{name} {found}, expected {row.expected[name]}")
