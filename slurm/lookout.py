"""What the first process of a training job looks after while the command runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from slurm.runs import RunFiles

_LEAST_SECONDS = 30.0


def needed_seconds(run: RunFiles) -> float | None:
    """How long before its end a job has to be asked to save, by its own measured saves.

    Twice the longest of the latest saves and a step, and half a minute for Slurm to tell all.
    """
    longest = run.save_seconds()
    return None if longest is None else 2 * (longest + run.step_seconds()) + _LEAST_SECONDS


class Lookout:
    """Asks the run to save in time, and tells what the preemption before it cost.

    Slurm sends its signal `signal_delay_s` before the end, which was chosen before a save had been
    measured; where saves take longer, the run is asked earlier, but not in the first half of the
    job's time. `end_time` gives the job's end, None where there is no limit.
    """

    def __init__(self, run: RunFiles, end_time: Callable[[], float | None]) -> None:
        self._run, self._end_time = run, end_time
        self._began, self._end = time.time(), end_time()
        self._told = len(run.preemptions())

    def look(self) -> bool:
        """Whether the run has to save now."""
        self.tell()
        return self._due() and self._due_still()

    def tell(self) -> None:
        """Print what the preemption before cost, as soon as it is known."""
        for preemption in self._run.preemptions()[self._told :]:
            print(preemption, file=sys.stderr, flush=True)
            self._told += 1

    def _due(self) -> bool:
        needed = needed_seconds(self._run)
        if self._end is None or needed is None:
            return False
        half = (self._began + self._end) / 2
        return time.time() >= max(half, self._end - needed)

    def _due_still(self) -> bool:
        """Whether nobody gave the job more time meanwhile."""
        self._end = self._end_time() or self._end  # Slurm may be silent for a while
        return self._due()
