"""Input rows with the pictures that are behind their addresses."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

from data_pipeline.fetch.background import Fetching
from data_pipeline.fetch.config import FetchConfig
from data_pipeline.fetch.manners import read_list
from data_pipeline.row import Rejection, Row

T = TypeVar("T")
_Arrived = SimpleQueue[tuple[int, Row, "Future[bytes]"]]


def with_pictures(
    rows: Iterator[tuple[int, Row]], config: FetchConfig, max_bytes: int
) -> Iterator[tuple[int, Row]]:
    """(position, row) of every row, with its picture or a problem, as they arrive.

    Rows that have a picture or a problem come at once. At most `config.concurrency` addresses are
    under way or waiting to be taken.
    """
    arrived: _Arrived = SimpleQueue()
    under_way = 0
    with ExitStack() as stack:
        fetching: Fetching | None = None
        for position, row in rows:
            if row.image is not None or row.problem is not None:
                yield position, row
                continue
            if fetching is None:
                fetching = stack.enter_context(Fetching(config, max_bytes))
            future = fetching.submit(row.url or "")
            future.add_done_callback(lambda done, p=position, r=row: arrived.put((p, r, done)))  # type: ignore[misc]
            under_way += 1
            while under_way >= config.concurrency or not arrived.empty():
                yield _take(fetching, arrived, config)
                under_way -= 1
        while fetching is not None and under_way:
            yield _take(fetching, arrived, config)
            under_way -= 1


def in_order(numbered: Iterator[tuple[int, T]], first: int = 0) -> Iterator[T]:
    """The items by their numbers, which run on from `first`; what comes too early waits."""
    waiting: dict[int, T] = {}
    for number, item in numbered:
        waiting[number] = item
        while first in waiting:
            yield waiting.pop(first)
            first += 1
    assert not waiting, "every number comes once"


def _take(fetching: Fetching, arrived: _Arrived, config: FetchConfig) -> tuple[int, Row]:
    position, row, future = arrived.get()
    try:
        image = future.result()
        fetching.taken(image)
        _check_hashes(image, row, config)
    except Rejection as why:
        return position, replace(row, problem=why)
    return position, replace(row, image=image)


def _check_hashes(image: bytes, row: Row, config: FetchConfig) -> None:
    unwanted = _hashes(config.opt_out_hashes)
    for name in ("md5", "sha256"):
        if name not in row.expected and not unwanted:
            continue
        found = hashlib.new(name, image, usedforsecurity=False).hexdigest()
        if found in unwanted:
            raise Rejection("opted_out", f"its {name} is on the opt-out list")
        if row.expected.get(name, found) != found:
            raise Rejection("wrong_hash", f"{name} {found}, expected {row.expected[name]}")


@lru_cache(maxsize=4)
def _hashes(path: Path | None) -> frozenset[str]:
    return frozenset(line.lower() for line in read_list(path))
