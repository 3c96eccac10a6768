"""A disk that fills is noticed before a checkpoint is lost to it."""

from __future__ import annotations

import time
from collections.abc import Callable

from base.errors import UserError
from base.files import require_free_space
from trainer.session import Session

_EVERY = 300.0  # seconds
_ROOM = 2  # checkpoints that should find room: the one before goes when the next is complete


class Disk:
    """Compares, at the start and every few minutes, what is free with what a checkpoint needs."""

    def __init__(self, session: Session, warn: Callable[[str], None]) -> None:
        flats = session.ema.attach(session.engine.flats())
        own = sum(t.numel() * t.element_size() for flat in flats for t in flat.tensors.values())
        self._run, self._warn = session.config.out, warn
        self._needed = sum(session.engine.gather(own))  # bytes, of all ranks
        self._next, self._told = time.monotonic(), False

    def look(self) -> None:
        """Tell it in one line, once until there is room again."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _EVERY
        try:
            require_free_space(self._run, _ROOM * self._needed)
        except UserError as error:
            if not self._told:
                self._warn(f"room for less than {_ROOM} checkpoints is left; {error}")
            self._told = True
        else:
            self._told = False
