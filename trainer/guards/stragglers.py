"""Ranks that take far longer than the others for their own part of a step."""

from __future__ import annotations

import faulthandler
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median_low
from types import TracebackType
from typing import Any

from trainer.engine.base import Engine
from trainer.guards.heartbeat import FOLDER

_TIMES = 2.0  # the median
_LEAST = 0.05  # seconds a step above it: below that nobody waits


def slow_path(run: Path, rank: int) -> Path:
    """Where a rank that lags leaves its stacks."""
    return run / FOLDER / f"rank_{rank:05d}.slow.txt"


class Stragglers:
    """Sums up every rank's own seconds: for data and forward, before it waits for others.

    They travel with the step's own sums, a step late. A rank that finds itself among the slow
    leaves its stacks once: of a later step of its own, when that lasts longer than other ranks'
    do. A context manager, at whose end no stacks are to come any more.
    """

    def __init__(self, engine: Engine, run: Path) -> None:
        self._rank, self._count = engine.rank, engine.world_size
        self._hosts = engine.gather(socket.gethostname())
        self._seconds, self._steps = [0.0] * self._count, 0
        self._path = slow_path(run, engine.rank)
        self._limit: float | None = None  # seconds after which stacks are wanted
        self._left = False
        self._timer: threading.Timer | None = None  # of the step that is watched

    def __enter__(self) -> Stragglers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop_watching()

    def own(self, seconds: float) -> list[float]:
        """This rank's seconds among zeros, to be summed over ranks."""
        return [seconds if rank == self._rank else 0.0 for rank in range(self._count)]

    def add(self, seconds: Sequence[float]) -> None:
        """Count a step: the seconds of every rank come first in `seconds`."""
        own = seconds[: self._count]
        self._seconds = [old + new for old, new in zip(self._seconds, own, strict=True)]
        self._steps += 1

    def take(self) -> dict[str, Any]:
        """For a line of metrics, who took more than twice the median; a new stretch begins."""
        means = [total / max(self._steps, 1) for total in self._seconds]
        middle = median_low(means)
        self._seconds, self._steps = [0.0] * self._count, 0
        slow = {
            rank: own
            for rank, own in enumerate(means)
            if own > _TIMES * middle and own - middle > _LEAST
        }
        self._limit = (middle + slow[self._rank]) / 2 if self._rank in slow else None
        rows = [
            {"rank": rank, "host": self._hosts[rank], "seconds": round(own, 3)}
            for rank, own in slow.items()
        ]
        return {"stragglers": rows} if rows else {}

    def watch(self) -> None:
        """When a step's own part begins: have stacks written if it takes long, and they lack."""
        if self._limit is None or self._left or self._timer is not None:
            return
        # A thread of Python's own, which holds the lock while it reads the frames of others.
        # faulthandler.dump_traceback_later holds none: frames that run meanwhile crash it, and us.
        self._timer = threading.Timer(self._limit, self._leave_stacks, [self._limit])
        self._timer.daemon = True
        self._timer.start()

    def stop_watching(self) -> None:
        """When a step's own part is over, or the run is."""
        if self._timer is None:
            return
        self._timer.cancel()
        self._timer.join()
        self._timer = None

    def _leave_stacks(self, limit: float) -> None:
        with suppress(OSError), self._path.open("w") as file:  # a full disk must not end us
            file.write(f"in a step of this rank's own after {limit:.3f} s\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
            self._left = True
