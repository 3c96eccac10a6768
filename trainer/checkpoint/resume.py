"""Which checkpoint a run goes on from: the newest whole one, looked for by all ranks together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from base.errors import UserError
from trainer.checkpoint.agree import Ranks, agreed, attempt
from trainer.checkpoint.folders import (
    checkpoint_folders,
    latest_checkpoint,
    latest_fault,
    point_latest,
    remove_leftovers,
    set_aside,
)
from trainer.checkpoint.manifest import FOLDER, LATEST
from trainer.checkpoint.read import Checkpoint, faults, open_checkpoint
from trainer.checkpoint.retention import Retention, prune

Warn = Callable[[str], None]


def newest_checkpoint(run: Path, ranks: Ranks, warn: Warn) -> Checkpoint | None:
    """The newest checkpoint that is whole; None when the run has none at all.

    Every rank hashes its share of a checkpoint's files, and all come to the same. Damaged ones are
    passed over, and `warn` of the first rank is told.

    Raises:
        UserError: there are checkpoints and every one is damaged.
    """
    wrong = ""
    folders, begun = ranks.gather((checkpoint_folders(run), (run / LATEST).exists()))[0]
    for folder in reversed(folders):
        checkpoint, problem = _looked_at(folder, ranks)
        if checkpoint is not None and problem is None:
            return checkpoint
        wrong = wrong or str(problem)
        if ranks.rank == 0:
            warn(f"checkpoint {folder.name} is damaged and passed over: {problem}")
    if begun and not wrong:
        wrong = f"{run / FOLDER}: its checkpoints are missing, though there is {run / LATEST}"
    if wrong:
        raise UserError(f"{run}: no whole checkpoint is left ({wrong}); use another `out`")
    return None


def adopt(run: Path, chosen: Path, ranks: Ranks, retention: Retention, warn: Warn) -> None:
    """Complete what an interrupted save left undone after `chosen` was whole, on the first rank.

    For those who own the run, once all have verified `chosen` as the newest.

    Raises:
        UserError: the first rank may not change the folder; all ranks raise alike.
    """

    def work() -> None:
        if ranks.rank == 0:
            _adopt(run, chosen, retention, warn)

    agreed(ranks, attempt(work), "cannot go on")


def _adopt(run: Path, chosen: Path, retention: Retention, warn: Warn) -> None:
    remove_leftovers(run / FOLDER)
    for folder in checkpoint_folders(run):
        if int(folder.name) > int(chosen.name):  # damaged, or it would have been chosen
            set_aside(folder)
    fault = latest_fault(run)
    if fault is not None:
        warn(f"{fault}; the newest whole checkpoint is {chosen.name}")
    if fault is not None or latest_checkpoint(run) != chosen:
        point_latest(run, chosen)
    prune(run, retention, chosen)


def _looked_at(folder: Path, ranks: Ranks) -> tuple[Checkpoint | None, str | None]:
    """A folder's checkpoint as this rank reads it, and the first thing any rank finds wrong."""
    checkpoint: Checkpoint | None = None
    try:
        checkpoint = open_checkpoint(folder)
        found = faults(checkpoint, ranks.rank, ranks.world_size)
        if ranks.rank == 0:
            checkpoint.state()
    except UserError as error:
        found = [str(error)]
    problems = [problem for part in ranks.gather(found) for problem in part]
    return checkpoint, problems[0] if problems else None
