"""Where every rank is: a small file each, renewed by a thread, and stacks of one that hangs."""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

FOLDER = "heartbeats"
RENEW_SECONDS = 5.0

Phase = Literal["save", "loader", "step"]  # in the order in which a position passes through them


@dataclass(frozen=True)
class Beat:
    """What a rank says of itself."""

    rank: int
    host: str
    pid: int
    samples: int
    phase: Phase
    seconds: float  # in this phase at this position
    waited: float  # seconds that the last step waited for data
    time: float  # since 1970, so that every beat differs from the one before


def beat_path(run: Path, rank: int) -> Path:
    """A rank's file."""
    return run / FOLDER / f"rank_{rank:05d}.json"


def stack_path(run: Path, rank: int) -> Path:
    """Where a rank that hangs leaves its stacks."""
    return run / FOLDER / f"rank_{rank:05d}.stack.txt"


class Heartbeat:
    """Renews this rank's file while the block runs, and calls `looks` as often.

    The loop only notes where it is. When it does not move for `hang_after` seconds, the stacks of
    all threads of the process are written beside the file. A clean end removes the file.
    """

    def __init__(
        self,
        run: Path,
        rank: int,
        hang_after: float,
        looks: Sequence[Callable[[], None]] = (),
    ) -> None:
        self._run, self._rank, self._hang_after, self._looks = run, rank, hang_after, looks
        self._place: tuple[Phase, int] = ("loader", 0)
        self._since, self._waited, self._dumped = time.monotonic(), 0.0, False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="heartbeat", daemon=True)

    def enter(self, phase: Phase, samples: int, waited: float = 0.0) -> None:
        """Note that the loop has come to `phase` of the step at `samples`."""
        self._place, self._since, self._waited = (phase, samples), time.monotonic(), waited
        self._dumped = False

    def __enter__(self) -> Heartbeat:
        beat_path(self._run, self._rank).parent.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        with suppress(OSError):  # the last one takes the folder, unless there are stacks in it
            beat_path(self._run, self._rank).unlink()
            beat_path(self._run, self._rank).parent.rmdir()

    def _renew(self) -> None:
        while True:
            with suppress(OSError):  # a full disk must not end us
                self._write()
                if not self._dumped and time.monotonic() - self._since > self._hang_after:
                    self._dump()
            for look in self._looks:
                with suppress(OSError):  # the next one may see more
                    look()
            if self._over.wait(min(RENEW_SECONDS, self._hang_after / 4)):
                return

    def _write(self) -> None:
        phase, samples = self._place
        seconds = time.monotonic() - self._since
        beat = Beat(
            *(self._rank, socket.gethostname(), os.getpid(), samples, phase),
            *(round(seconds, 3), round(self._waited, 3), time.time()),
        )
        path = beat_path(self._run, self._rank)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(beat)))
        os.replace(temporary, path)  # not synced: after a crash of the machine nobody asks

    def _dump(self) -> None:
        phase, samples = self._place
        with stack_path(self._run, self._rank).open("w") as file:
            file.write(f"in {phase} at {samples} samples for more than {self._hang_after:g} s\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        self._dumped = True
