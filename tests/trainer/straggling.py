"""A rank that lags and works meanwhile, its stacks written again and again: straggling.py RUN.

Prints how often they were.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import cast

from trainer.engine.base import Engine
from trainer.guards.stragglers import Stragglers, slow_path

TIMES = 60


class Two:
    """As much of an engine as is asked, of two ranks."""

    rank, world_size = 1, 2

    def gather(self, value: str) -> list[str]:
        return [value] * 2


def work(depth: int) -> int:
    """Calls and returns all the time, so that frames come and go."""
    return sum(work(depth - 1) for _ in range(2)) if depth else 1


def main(run: Path) -> None:
    path, left = slow_path(run, 1), 0
    path.parent.mkdir()
    for _ in range(TIMES):
        with Stragglers(cast(Engine, Two()), run) as stragglers:
            stragglers.add([0.0, 0.0502])
            stragglers.take()
            stragglers.watch()
            end = time.monotonic() + 0.06
            while time.monotonic() < end:
                work(9)
        left += path.exists()
        path.unlink(missing_ok=True)
    print(left)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
