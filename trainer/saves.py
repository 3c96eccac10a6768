"""A session's saves: begun, made complete, told, and looked at."""

from __future__ import annotations

import time
from collections.abc import Callable

from base.errors import one_line
from trainer.events import Events
from trainer.guards.heartbeat import Heartbeat
from trainer.guards.report import remove_old_report
from trainer.metrics import Metrics
from trainer.sampling.progress import ProgressPictures
from trainer.session import Session


class Saves:
    """A run's checkpoints, and the pictures that their weights make."""

    def __init__(
        self,
        session: Session,
        metrics: Metrics | None,
        heartbeat: Heartbeat,
        events: Events,
        warn: Callable[[str], None],
    ) -> None:
        self._session, self._metrics = session, metrics
        self._heartbeat, self._events, self._warn = heartbeat, events, warn
        self._begun = 0.0  # when the last save was
        self._complete: int | None = None  # samples of a checkpoint that is complete, not shown yet
        self._pictures = ProgressPictures(session.config, session.objective, session.engine.device)

    def begin(self) -> None:
        """Begin a checkpoint, when the one before is complete and was looked at."""
        self._heartbeat.enter("save", self._session.state.samples)
        self._session.finish_checkpoint()
        self.show()
        self._save()

    def end(self) -> None:
        """Have a checkpoint of this moment, complete, and nothing under way."""
        self._heartbeat.enter("save", self._session.state.samples)
        self._save()
        self._session.finish_save()
        self._note()
        if self._metrics is not None:  # on the first rank
            remove_old_report(self._session.config.out, self._session.state.samples)

    def show(self) -> None:
        """Draw what the weights of a checkpoint make, as soon as it is safe."""
        self._note()
        samples, self._complete = self._complete, None
        if samples is None or self._metrics is None:
            return
        remove_old_report(self._session.config.out, samples)
        try:
            if (picture := self._pictures.draw(samples)) is not None:
                self._metrics.show(picture, samples)
        except Exception as error:  # no memory, no room, a file in the way: the run is worth more
            self._warn(f"no picture of {samples} samples: {one_line(error)}")

    def _save(self) -> None:
        if self._session.saved_at != self._session.state.samples:
            self._begun = time.monotonic()
        self._session.save()

    def _note(self) -> None:
        """Remember what became complete, and tell how long it took."""
        samples = self._session.take_complete()
        if samples is not None:
            self._complete = samples
            self._events.saved(samples, time.monotonic() - self._begun)
