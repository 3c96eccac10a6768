"""Work on the next items while the caller has the last one, for what mostly waits."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def map_ahead(function: Callable[[A], B], items: Iterable[A], threads: int) -> Iterator[B]:
    """`map` in order, with at most `threads` calls under way or waiting to be taken.

    One thread is the caller's own: nothing is begun before it is asked for.
    """
    if threads <= 1:
        yield from map(function, items)
        return
    remaining = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        begun: deque[Future[B]] = deque()
        try:
            for item in islice(remaining, threads):
                begun.append(pool.submit(function, item))
            while begun:
                yield begun.popleft().result()
                for item in islice(remaining, 1):
                    begun.append(pool.submit(function, item))
        finally:
            for future in begun:
                future.cancel()
