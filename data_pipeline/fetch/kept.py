"""One client for all tasks of a process: connections, names and robots.txt stay known."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from data_pipeline.fetch.background import Fetching
from data_pipeline.fetch.config import FetchConfig
from data_pipeline.fetch.lists import stamps


@dataclass
class _Kept:
    key: object
    fetching: Fetching
    users: int = 0


_lock = threading.Lock()
_kept: _Kept | None = None


@contextmanager
def kept_fetching(config: FetchConfig, max_bytes: int) -> Iterator[Fetching]:
    """A client that outlives the block; another config, or another opt-out list, is another one.

    Raises:
        UserError: an opt-out list cannot be read.
    """
    held = _take(config, max_bytes)
    try:
        yield held.fetching
    finally:
        with _lock:
            held.users -= 1
            if held is not _kept and not held.users:
                held.fetching.__exit__(None, None, None)


def _take(config: FetchConfig, max_bytes: int) -> _Kept:
    global _kept
    key = (config, max_bytes, stamps(config))
    with _lock:
        if _kept is None or _kept.key != key:
            before, _kept = _kept, _Kept(key, Fetching(config, max_bytes).__enter__())
            if before is not None and not before.users:
                before.fetching.__exit__(None, None, None)
        _kept.users += 1
        return _kept


@atexit.register
def close() -> None:
    """Ends the client that is kept, if there is one and nobody uses it."""
    global _kept
    with _lock:
        if _kept is not None and not _kept.users:
            _kept.fetching.__exit__(None, None, None)
        _kept = None
