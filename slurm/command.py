"""A command of ours as a child process, to which the signals of a job are passed on."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType

_PASSED = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
_LOOK_SECONDS = 5.0


class Command:
    """Runs commands one after another; `asked` are the signals that came while the last ran.

    `asked_at`: when the first of them did, in seconds since 1970.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._child: subprocess.Popen[bytes] | None = None
        self.asked: list[int] = []
        self.asked_at: float | None = None

    def run(self, words: Sequence[str], look: Callable[[], bool] | None = None) -> int:
        """Run Python with these words to its end; the exit code, 128 + n of a signal's end.

        `look` is called every few seconds; once it says so the command is asked to save and end.
        """
        self.asked, self.asked_at = [], None
        earlier = {number: signal.signal(number, self._pass_on) for number in _PASSED}
        try:
            self._child = subprocess.Popen([sys.executable, *words], env=self._environment)
            for number in self.asked:  # while it was being started
                self._tell(number)
            code = self._wait(self._child, look)
        finally:
            self._child = None
            for number, handler in earlier.items():
                signal.signal(number, handler)
        return 128 - code if code < 0 else code

    def _wait(self, child: subprocess.Popen[bytes], look: Callable[[], bool] | None) -> int:
        while look is not None:
            try:
                return child.wait(_LOOK_SECONDS)
            except subprocess.TimeoutExpired:
                if look():
                    self._pass_on(signal.SIGUSR2, None)
                    break
        return child.wait()

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.asked.append(number)
        self.asked_at = self.asked_at or time.time()
        self._tell(number)

    def _tell(self, number: int) -> None:
        """Let the command know, which may have been told already: by Slurm, or by a terminal.

        A second SIGTERM or SIGUSR2 changes nothing; a second SIGINT would end it unsaved.
        """
        if self._child is not None:
            self._child.send_signal(signal.SIGTERM if number == signal.SIGINT else number)
