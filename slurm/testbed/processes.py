"""Daemons as processes: started apart from us, known again later, ended for certain."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from base.owner import process_start

_POLL_SECONDS = 0.05
_KILL_SECONDS = 5.0


@dataclass(frozen=True)
class Process:
    """A process, told from a later one with the same pid by when it started."""

    pid: int
    start: str

    @staticmethod
    def of(pid: int) -> Process:
        """The process that has this pid now."""
        return Process(pid, process_start(pid))

    @property
    def alive(self) -> bool:
        """Whether it runs; a zombie does not."""
        return self.start != "" and process_start(self.pid) == self.start

    def send(self, number: signal.Signals) -> None:
        """Sends a signal, unless it has ended."""
        if self.alive:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


def spawn(
    command: Sequence[str],
    environment: Mapping[str, str],
    output: Path,
    record: Callable[[Process], None],
) -> Process:
    """Starts a process that outlives this one; what it prints is appended to `output`.

    The command begins after `record` has returned: a shell with its pid waits for a word from us,
    and leaves when we end without it. So whatever kills us when, nothing runs unrecorded.
    """
    waiting = ["/bin/sh", "-c", 'read -r go && exec "$@" </dev/null', "sh", *command]
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    heard, said = os.pipe()
    try:
        pid = os.posix_spawn(
            waiting[0],
            waiting,
            environment,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, heard, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(output), append, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,  # no signal of our terminal's reaches it
            setsigmask=[],
            setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
        )
        process = Process.of(pid)
        record(process)
        os.write(said, b"go\n")
    finally:
        os.close(heard)
        os.close(said)
    return process


def end(processes: Iterable[Process], patience: float) -> list[Process]:
    """Ends processes with SIGTERM, and after `patience` seconds with SIGKILL; those left over."""
    left = list(processes)
    for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, _KILL_SECONDS)):
        for process in left:
            process.send(number)
        left = _outlived(left, seconds)
    return left


def kill(process: Process) -> None:
    """Ends a process at once."""
    process.send(signal.SIGKILL)
    _outlived([process], _KILL_SECONDS)


def _outlived(processes: list[Process], seconds: float) -> list[Process]:
    """Those that still run after at most `seconds`."""
    deadline = time.monotonic() + seconds
    while left := [process for process in processes if process.alive]:
        if time.monotonic() > deadline:
            break
        time.sleep(_POLL_SECONDS)
    for process in processes:
        if process not in left:
            reap(process)
    return left


def reap(process: Process) -> None:
    """Takes what is left of a child that has ended; others are not ours to take."""
    with suppress(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)
