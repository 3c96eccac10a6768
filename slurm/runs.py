"""What a RUN's files tell of it: how far it is, what befell it, how long its saves take."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from base import yaml
from base.errors import Stopped, UserError

_TAIL = 1 << 18  # bytes of a file that is appended to that are looked at
_SAVES = 10  # the latest, of which the longest counts


@dataclass(frozen=True)
class Preemption:
    """What one stop on request cost, in seconds."""

    to_save: float  # from the signal to the end of the job's processes
    queued: float  # until Slurm started it again: not the run's own
    to_step: float  # from there to the first step

    @property
    def lost(self) -> float:
        """From the signal to the first new step, time in the queue apart."""
        return self.to_save + self.to_step

    def __str__(self) -> str:
        return (
            f"preempted: {self.lost:.1f} s lost, {self.to_save:.1f} to save and {self.to_step:.1f} "
            f"to the first new step, {self.queued:.1f} s in the queue apart"
        )


@dataclass(frozen=True)
class RunFiles:
    """A RUN's folder, as far as the launcher looks into it."""

    folder: Path

    def metrics(self) -> dict[str, Any]:
        """The last line of its metrics; empty where there is none."""
        lines = _backwards(self.folder / "metrics.jsonl")
        return next((line for line in lines if isinstance(line.get("samples"), int)), {})

    def events(self) -> list[dict[str, Any]]:
        """What befell it, oldest first."""
        found = [line for line in _backwards(self.folder / "events.jsonl") if _is_event(line)]
        return found[::-1]

    def note(self, event: str, when: float | None = None, **more: object) -> None:
        """Add to what befell it; of a run that has not begun there is nothing to tell."""
        if not self.folder.is_dir():
            return
        line = {"time": round(time.time() if when is None else when, 3), "event": event, **more}
        with suppress(OSError), (self.folder / "events.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def samples(self) -> int:
        """Those of the latest checkpoint, which a restart goes on from."""
        with suppress(OSError, ValueError):
            return int((self.folder / "latest").read_text())
        return 0

    def total(self) -> int | None:
        """Samples that it is to see, by its config."""
        try:
            config, _ = yaml.parse((self.folder / "config.yaml").read_text(), "config.yaml")
            return int(config["train"]["samples"])
        except (OSError, UserError, KeyError, TypeError, ValueError):
            return None

    def save_seconds(self) -> float | None:
        """How long its saves take, from their beginning until the checkpoint is complete."""
        saved = [each for each in self.events() if each["event"] == "saved"]
        return max((each.get("seconds", 0.0) for each in saved[-_SAVES:]), default=None)

    def step_seconds(self) -> float:
        """How long a step takes, which a stop waits for; 0 where nothing is known."""
        last = self.metrics()
        rate, steps = last.get("samples_per_second"), last.get("steps")
        return last["samples"] / steps / rate if rate and steps else 0.0

    def preemptions(self) -> list[Preemption]:
        """What each stop on request cost that the run has gone on from."""
        found, times = [], dict[str, float]()
        for each in self.events():
            event, when = each["event"], each["time"]
            if event == "signalled":
                times = {event: when}
            elif event == "requeued" and each.get("code") != Stopped.exit_code:
                times = {}  # it broke down, and the signal was Slurm's to those that were left
            elif event in ("requeued", "started") and "signalled" in times:
                times[event] = when
            elif event == "first step" and {"requeued", "started"} <= times.keys():
                signalled, ended, started = times["signalled"], times["requeued"], times["started"]
                found.append(Preemption(ended - signalled, started - ended, when - started))
                times = {}
        return found


def last_lines(path: Path) -> list[str]:
    """Those at the end of a file that is being written; none where it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - _TAIL, 0))
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []


def _backwards(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of JSON at a file's end, the last one first."""
    for line in reversed(last_lines(path)):
        with suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict):
                yield found


def _is_event(line: dict[str, Any]) -> bool:
    return isinstance(line.get("time"), int | float) and isinstance(line.get("event"), str)
