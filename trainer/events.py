"""What befell a run, with the time of day: events.jsonl, which the launcher reads."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal

FILE = "events.jsonl"

Event = Literal["begins", "first step", "asked to stop", "saved"]


class Events:
    """Appends lines of `time` (seconds since 1970), `event`, `samples` and what is told beside.

    `begins` has the number of `ranks` and the Slurm `job`; `first step` comes after the first step
    of a session, `asked to stop` when the ranks have agreed to, and `saved`, with `seconds`, when a
    checkpoint is complete. Without a `run`, as on ranks beyond the first, nothing is written.
    """

    def __init__(self, run: Path | None) -> None:
        self._path = None if run is None else run / FILE
        self._stepped = False

    def begins(self, samples: int, ranks: int) -> None:
        """A session is about to take steps."""
        self._add("begins", samples, ranks=ranks, job=os.environ.get("SLURM_JOB_ID"))

    def stepped(self, samples: int) -> None:
        """A step was taken; the first is told."""
        if not self._stepped:
            self._stepped = True
            self._add("first step", samples)

    def asked(self, samples: int) -> None:
        """The ranks have agreed to stop here."""
        self._add("asked to stop", samples)

    def saved(self, samples: int, seconds: float) -> None:
        """A checkpoint that was begun so many seconds ago is complete."""
        self._add("saved", samples, seconds=round(seconds, 3))

    def _add(self, event: Event, samples: int, **more: object) -> None:
        if self._path is None:
            return
        line = {"time": round(time.time(), 3), "event": event, "samples": samples, **more}
        with suppress(OSError), self._path.open("a", encoding="utf-8") as file:  # not worth a run
            file.write(json.dumps(line) + "\n")
