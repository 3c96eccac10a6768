"""SIGTERM in the demo: at any moment as good as Ctrl-C, but for the exit code."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from base.errors import Stopped

_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """SIGTERM and SIGUSR2 interrupt the block wherever it is; stages that save first do so.

    Raises:
        Stopped: one of them came.
        KeyboardInterrupt: Ctrl-C did.
    """
    asked = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # Python allows handlers there alone
        return
    earlier = [signal.signal(number, interrupt) for number in _SIGNALS]
    try:
        yield
    except KeyboardInterrupt:
        if asked:
            raise Stopped("stopped; run the same command again") from None
        raise
    finally:
        for number, handler in zip(_SIGNALS, earlier, strict=True):
            signal.signal(number, handler)
