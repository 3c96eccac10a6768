"""Ranks that take far longer than the others for their own part of a step."""

from __future__ import annotations

import faulthandler
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median_low
from types import TracebackType
from typing import Any, TextIO

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
        self._file: TextIO | None = None  # of the step that is watched
        self._length = 0  # bytes of it before any stack

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
        if self._limit is None or self._left or self._file is not None:
            return
        with suppress(OSError):  # a full disk must not end us
            self._file = self._path.open("w")
            self._file.write(f"in a step of this rank's own after {self._limit:.3f} s\n")
            self._file.flush()
            self._length = self._file.tell()
            faulthandler.dump_traceback_later(self._limit, file=self._file)

    def stop_watching(self) -> None:
        """When a step's own part is over, or the run is."""
        if self._file is None:
            return
        faulthandler.cancel_dump_traceback_later()
        self._left = os.fstat(self._file.fileno()).st_size > self._length
        self._file.close()
        if not self._left:
            self._path.unlink(missing_ok=True)
        self._file = None
