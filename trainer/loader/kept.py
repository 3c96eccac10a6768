"""A bounded memory of what was made last."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
T = TypeVar("T")


class Kept(Generic[K, T]):
    """The most recently used results of `make`, by key.

    For any number of threads: two that ask for the same at once may both make it.
    """

    def __init__(self, make: Callable[[K], T], most: int) -> None:
        self._make, self._most = make, most
        self._kept: OrderedDict[K, T] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, key: K) -> T:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = self._make(key)
        with self._lock:
            self._kept[key] = made
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return made
