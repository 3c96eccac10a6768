"""Saving while training goes on, and how the ranks agree on it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from types import TracebackType

from base.lease import require_held
from trainer.checkpoint.agree import Outcome, Ranks, agreed, attempt
from trainer.checkpoint.manifest import FOLDER, folder_name
from trainer.checkpoint.retention import Retention
from trainer.checkpoint.staging import Staging
from trainer.checkpoint.write import Part, Snapshot, begin, complete, write_slices

Work = Callable[[], object]


@dataclass(frozen=True, eq=False)
class Series:
    """The saves of one kind: where they lie, how one is completed, and the copy that it needs."""

    root: Path
    failure: str  # what a user reads before the reason
    complete: Callable[[Path, Sequence[Part], Snapshot], None]  # (target, parts, …), of rank 0
    staging: Staging | None


def checkpoints(run: Path, retention: Retention, staging: Staging | None) -> Series:
    """A run's checkpoints, which `latest` names and of which not all stay."""

    def finish(target: Path, parts: Sequence[Part], snapshot: Snapshot) -> None:
        complete(run, target, parts, snapshot, retention)

    return Series(run / FOLDER, "checkpoint not saved", finish, staging)


@dataclass(frozen=True)
class _Save:
    """A save that was begun: a moment, and what becomes of it."""

    series: Series
    snapshot: Snapshot
    target: Path
    size: int  # bytes, of all ranks


class Saver:
    """Writes what a run saves; every rank has one, and all call it alike.

    A save has two turns: every rank writes and reads back its slices; then the first rank completes
    the folder. `threaded`, training waits for the copy into the series' staging alone, and the
    turns run in a thread of each rank. The threads have no collectives: those could not be kept in
    one order with training's without a process group of their own, whose end would have to be
    minded too. In their place each rank adds `over` to what a step sums over the ranks anyway, and
    a turn ends at the step boundary where all are over: the same one everywhere. There a failed
    turn is raised by all.

    Saves become complete in the order in which they were begun. So a checkpoint that is complete
    says that the snapshots of averages before it are, which no later session would make again.

    A context manager: the thread has ended when the block has. What is not complete by then is
    given up, as if the process had been killed.
    """

    def __init__(self, run: Path, ranks: Ranks, threaded: bool) -> None:
        self._run, self._ranks = run, ranks
        self._thread = ThreadPoolExecutor(1, "checkpoint") if threaded else None
        self._given_up = Event()
        self._begun: deque[_Save] = deque()  # of which the first is under way
        self._turn: Future[Outcome] | None = None  # that of the first
        self._parts: Sequence[Part] | None = None  # of its ranks, once all have verified theirs
        self._complete: dict[Series, int] = {}

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
    def saving(self) -> bool:
        """Whether something that was begun is not complete."""
        return bool(self._begun)

    @property
    def over(self) -> float:
        """1.0 when this rank's part of a turn is over, whether or not it went well; else 0.0."""
        return float(self._turn is not None and self._turn.done())

    def begin(self, series: Series, snapshot: Snapshot) -> None:
        """Save a moment, after the series' one before is complete; unthreaded, to the end.

        Raises:
            UserError: a rank could not write; all ranks raise alike, and there is nothing new.
        """
        self.wait_for(series)
        ranks, target = self._ranks, series.root / folder_name(snapshot.state.samples)
        size = sum(ranks.gather(snapshot.bytes))
        room = size + sum(save.size for save in self._begun)
        made = attempt(lambda: begin(target, room) if ranks.rank == 0 else None)
        agreed(ranks, made, series.failure)
        own = snapshot if series.staging is None else series.staging.take(snapshot)
        self._begun.append(_Save(series, own, target, size))
        if self._turn is None:
            self._write_first()
        if self._thread is None:
            self.finish()

    def advance(self, over: float) -> None:
        """At a step boundary: go on when `over`, summed over ranks, says that all are.

        Raises:
            UserError: a rank could not write; all ranks raise alike.
        """
        if self._turn is not None and over >= self._ranks.world_size:
            self._end_turn(self._turn)

    def wait_for(self, series: Series) -> None:
        """Wait until what was begun of a series, and before it, is complete.

        Raises:
            UserError: a rank could not write; all ranks raise alike.
        """
        while any(save.series is series for save in self._begun) and self._turn is not None:
            self._end_turn(self._turn)

    def finish(self) -> None:
        """Wait until all that was begun is complete.

        Raises:
            UserError: a rank could not write; all ranks raise alike.
        """
        while self._turn is not None:
            self._end_turn(self._turn)

    def take_complete(self, series: Series) -> int | None:
        """Samples of the newest of a series that became complete since this was last asked."""
        return self._complete.pop(series, None)

    def _end_turn(self, turn: Future[Outcome]) -> None:
        """Wait for a turn of the first save, and begin what comes after it."""
        begun, self._begun, self._turn = self._begun, deque(), None  # failed: all are given up
        save = begun[0]
        parts = agreed(self._ranks, turn.result(), save.series.failure)
        self._begun = begun
        if self._parts is None:
            self._parts = parts
            self._turn = self._start(lambda: self._finish_folder(save, parts))
            return
        self._complete[save.series] = save.snapshot.state.samples
        self._begun.popleft()
        self._parts = None
        if self._begun:
            self._write_first()

    def _write_first(self) -> None:
        save, rank = self._begun[0], self._ranks.rank
        self._turn = self._start(
            lambda: write_slices(save.target, rank, save.snapshot, self._given_up)
        )

    def _finish_folder(self, save: _Save, parts: Sequence[Part]) -> None:
        if self._ranks.rank == 0:
            require_held(self._run)  # not into a folder that another run has taken over meanwhile
            save.series.complete(save.target, parts, save.snapshot)

    def _start(self, work: Work) -> Future[Outcome]:
        """Do a turn's work in the thread, or at once."""
        if self._thread is not None:
            return self._thread.submit(attempt, work)
        done: Future[Outcome] = Future()
        done.set_result(attempt(work))
        return done
