"""Saving while training goes on, and how the ranks agree on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from types import TracebackType

from base.lease import require_held
from trainer.checkpoint.agree import Outcome, Ranks, agreed, attempt
from trainer.checkpoint.retention import Retention
from trainer.checkpoint.staging import Staging
from trainer.checkpoint.write import (
    Part,
    Snapshot,
    begin,
    complete,
    target_folder,
    write_slices,
)

_FAILURE = "checkpoint not saved"
Work = Callable[[], object]


@dataclass(frozen=True)
class _Save:
    """A save that has begun, and the turn that it is in."""

    snapshot: Snapshot
    target: Path
    turn: Future[Outcome]
    parts: Sequence[Part] | None  # what the ranks' files hold, once all have verified them


class Saver:
    """Saves a run's checkpoints; every rank has one, and all call it alike.

    A save has two turns: every rank writes and reads back its slices; then the first rank completes
    the folder. With a `staging`, training waits for the copy into it alone, and the turns run in a
    thread of each rank. The threads have no collectives: those could not be kept in one order with
    training's without a process group of their own, whose end would have to be minded too. In their
    place each rank adds `over` to what a step sums over the ranks anyway, and a turn ends at the
    step boundary where all are over: the same one everywhere. There a failed turn is raised by all.

    A context manager: the thread has ended when the block has. A save that is not complete by then
    is given up, as if the process had been killed.
    """

    def __init__(
        self, run: Path, ranks: Ranks, retention: Retention, staging: Staging | None
    ) -> None:
        self._run, self._ranks, self._retention = run, ranks, retention
        self._staging = staging
        self._thread = None if staging is None else ThreadPoolExecutor(1, "checkpoint")
        self._given_up = Event()
        self._save: _Save | None = None
        self._complete: int | None = None

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._given_up.set()
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    @property
    def over(self) -> float:
        """1.0 when this rank's part of a turn is over, whether or not it went well; else 0.0."""
        return float(self._save is not None and self._save.turn.done())

    def begin(self, snapshot: Snapshot) -> None:
        """Save a checkpoint, after the one before is complete; without staging, to the end.

        Raises:
            UserError: a rank could not write; all ranks raise alike, and `latest` is as it was.
        """
        self.finish()
        ranks, target = self._ranks, target_folder(self._run, snapshot)
        size = sum(ranks.gather(snapshot.bytes))
        made = attempt(lambda: begin(target, size) if ranks.rank == 0 else None)
        agreed(ranks, made, _FAILURE)
        own = snapshot if self._staging is None else self._staging.take(snapshot)
        turn = self._start(lambda: write_slices(target, ranks.rank, own, self._given_up))
        self._save = _Save(own, target, turn, None)
        if self._staging is None:
            self.finish()

    def advance(self, over: float) -> None:
        """At a step boundary: go on when `over`, summed over ranks, says that all are.

        Raises:
            UserError: a rank could not write; all ranks raise alike.
        """
        if self._save is not None and over >= self._ranks.world_size:
            self._end_turn(self._save)

    def finish(self) -> None:
        """Wait until what has begun is complete.

        Raises:
            UserError: a rank could not write; all ranks raise alike.
        """
        while self._save is not None:
            self._end_turn(self._save)

    def take_complete(self) -> int | None:
        """Samples of the checkpoint that became complete since this was last asked."""
        samples, self._complete = self._complete, None
        return samples

    def _end_turn(self, save: _Save) -> None:
        self._save = None  # what has failed is not waited for again
        parts = agreed(self._ranks, save.turn.result(), _FAILURE)
        if save.parts is not None:
            self._complete = save.snapshot.state.samples
            return
        turn = self._start(lambda: self._finish_folder(save, parts))
        self._save = _Save(save.snapshot, save.target, turn, parts)

    def _finish_folder(self, save: _Save, parts: Sequence[Part]) -> None:
        if self._ranks.rank == 0:
            require_held(self._run)  # not into a folder that another run has taken over meanwhile
            complete(self._run, save.target, parts, save.snapshot, self._retention)

    def _start(self, work: Work) -> Future[Outcome]:
        """Do a turn's work in the thread, or at once."""
        if self._thread is not None:
            return self._thread.submit(attempt, work)
        done: Future[Outcome] = Future()
        done.set_result(attempt(work))
        return done
