"""Ranks that take far longer than the others for their own part of a step."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from statistics import median_low
from typing import Any

from trainer.engine.base import Engine

_TIMES = 2.0  # the median
_LEAST = 0.05  # seconds a step above it: below that nobody waits


class Stragglers:
    """Sums up every rank's own seconds: for data and forward, before it waits for others.

    They travel with the step's own sums, a step late.
    """

    def __init__(self, engine: Engine) -> None:
        self._rank, self._count = engine.rank, engine.world_size
        self._hosts = engine.gather(socket.gethostname())
        self._seconds, self._steps = [0.0] * self._count, 0

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
        slow = [
            {"rank": rank, "host": self._hosts[rank], "seconds": round(own, 3)}
            for rank, own in enumerate(means)
            if own > _TIMES * middle and own - middle > _LEAST
        ]
        return {"stragglers": slow} if slow else {}
