"""A look at the ranks' heartbeats: who is late is named once, with host and process."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from trainer.guards.heartbeat import FOLDER, Beat, Phase, beat_path, stack_path

_ORDER: tuple[Phase, ...] = get_args(Phase)


class Watch:
    """Tells ranks that keep the others waiting from those that wait.

    A rank whose file is not renewed is stopped, dead or cut off. Where all are renewed and do not
    move, the ones that are furthest behind hold up the others, which wait for them in the step.
    Clocks of other machines are not looked at, nor what went by while this process was stopped.
    The first rank watches all. The second one watches the first, and names it when it is `silent`
    alone: who else is late the first one tells.
    """

    def __init__(
        self,
        run: Path,
        ranks: int,
        hang_after: float,
        warn: Callable[[str], None],
        silent: bool = False,
    ) -> None:
        self._silent = silent
        self._run, self._hang_after, self._warn = run, hang_after, warn
        self._looked = time.monotonic()
        self._beats: list[Beat | None] = [None] * ranks
        self._renewed = [self._looked] * ranks  # when a file was last seen to change
        self._named: set[int] = set()

    def look(self) -> None:
        """Read all files, and name who is late and was not named yet."""
        now = time.monotonic()
        if now - self._looked > self._hang_after:
            self._renewed = [now] * len(self._beats)
        self._looked = now
        for rank, known in enumerate(self._beats):
            beat = _read(beat_path(self._run, rank))
            if beat is not None and beat != known:
                self._beats[rank], self._renewed[rank] = beat, now
        late = self._late(now)
        for rank in sorted(set(late) - self._named):
            self._warn(late[rank])
        self._named = set(late)

    def _late(self, now: float) -> dict[int, str]:
        silent = {
            rank: f"{self._name(rank)} is silent for {now - renewed:.0f} s"
            for rank, renewed in enumerate(self._renewed)
            if now - renewed > self._hang_after
        }
        if silent or self._silent:
            return silent
        beats = [beat for beat in self._beats if beat is not None]
        behind = min(map(_place, beats), default=None)
        return {
            beat.rank: f"{self._name(beat.rank)} is in the {beat.phase} for {beat.seconds:.0f} s; "
            f"stacks are in {FOLDER}/{stack_path(self._run, beat.rank).name}"
            for beat in beats
            if beat.seconds > self._hang_after and _place(beat) == behind
        }

    def _name(self, rank: int) -> str:
        beat = self._beats[rank]
        if beat is None:
            return f"rank {rank}, which has not begun,"
        return f"rank {rank} on host {beat.host}, pid {beat.pid}, at {beat.samples} samples"


def _place(beat: Beat) -> tuple[int, int]:
    return beat.samples, _ORDER.index(beat.phase)


def _read(path: Path) -> Beat | None:
    try:
        return Beat(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
