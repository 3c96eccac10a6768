"""Where the time goes: functions replaced for a while by ones that time themselves."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any
from unittest.mock import patch


class Clock:
    """Seconds by label, each without those of watched functions that it called."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner = [0.0]  # of what is being timed: time of watched calls inside it
        self._patches: list[Any] = []
        self._stack = ExitStack()

    def watch(self, label: str, owner: Any, name: str) -> None:
        """Times `owner.name` while the clock is entered."""
        self.replace(owner, name, self.timed(label, getattr(owner, name)))

    def replace(self, owner: Any, name: str, value: Any) -> None:
        """Puts `value` in the place of `owner.name` while the clock is entered."""
        self._patches.append(patch.object(owner, name, value))

    def timed(self, label: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, with its time under `label`."""

        def wrapped(*arguments: Any, **options: Any) -> Any:
            self._inner.append(0.0)
            begun = time.perf_counter()
            try:
                return call(*arguments, **options)
            finally:
                passed = time.perf_counter() - begun
                self.seconds[label] += passed - self._inner.pop()
                self._inner[-1] += passed

        return wrapped

    def __enter__(self) -> Clock:
        for item in self._patches:
            self._stack.enter_context(item)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
