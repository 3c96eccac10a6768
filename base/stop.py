"""Stopping on request: signals set a flag, and the work ends where it is safe to."""

import ctypes
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from base.errors import Stopped

_SYSTEM = (signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)
_asked = threading.Event()  # a flag has taken a signal of the system: this process is ending
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
STOPPED = "stopped; run the same command again"


class StopFlag:
    """Turns SIGTERM, SIGUSR2, SIGHUP (a terminal that closes) and SIGINT into a flag.

    While the block runs. A second SIGINT raises KeyboardInterrupt at once, for whoever cannot wait.
    Earlier handlers come back at the end. Off the main thread, where Python allows no handlers, it
    does nothing.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._earlier: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether somebody asked this process to stop."""
        return self.signal is not None

    def raise_if_requested(self, message: str = STOPPED) -> None:
        """Ends the work when a stop was asked for.

        Raises:
            KeyboardInterrupt: the request came from the keyboard.
            Stopped: it came from the system or the scheduler.
        """
        if self.signal is signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is not None:
            raise Stopped(message)

    def __enter__(self) -> "StopFlag":
        if threading.current_thread() is threading.main_thread():
            for number in (*_heard(), signal.SIGINT):
                self._earlier[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal is signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
        if number in _SYSTEM:
            _asked.set()


@contextmanager
def interrupted_by_signals() -> Iterator[Callable[[], bool]]:
    """SIGTERM, SIGUSR2 and SIGHUP raise KeyboardInterrupt wherever the block is, as Ctrl-C does.

    Gives what tells whether one of them came. Within a StopFlag it is the flag that they set, and
    after it what comes again is no news: what was saved must not be told as an interruption.
    """
    came = threading.Event()
    _asked.clear()

    def interrupt(number: int, frame: FrameType | None) -> None:
        came.set()
        if not _asked.is_set():
            raise KeyboardInterrupt

    earlier = {number: signal.signal(number, interrupt) for number in _heard()}
    try:
        yield came.is_set
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def stop_with_parent() -> None:
    """Let SIGTERM come when the process that started this one ends, by whatever death (Linux).

    For those whose launcher may be killed by a signal that it does not pass on.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _heard() -> list[signal.Signals]:
    """`nohup` ignores SIGHUP, and so do we then."""
    return [number for number in _SYSTEM if signal.getsignal(number) is not signal.SIG_IGN]
