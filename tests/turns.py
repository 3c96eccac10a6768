"""Turns that the processes of one test session take."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Turns:
    """By locks on files of a folder that all of them know."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def turn(self, alone: bool) -> Iterator[None]:
        """Runs beside the others or, when `alone`, while none of them runs.

        Whoever waits to be alone stands in the door, so that nobody goes in before.
        """
        room = self._locked("room", fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        with self._locked("door", fcntl.LOCK_EX) as door, room:
            fcntl.flock(door, fcntl.LOCK_UN)
            yield

    @contextmanager
    def _locked(self, name: str, how: int) -> Iterator[int]:
        file = os.open(self.folder / name, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(file, how)
            yield file
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # a forked child may have the file open for longer
            os.close(file)
