"""Which checkpoints stay: the last ones, milestones, the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from base.errors import UserError
from base.lease import Lease
from trainer.checkpoint.folders import checkpoint_folders, remove
from trainer.checkpoint.manifest import read_manifest
from trainer.checkpoint.read import folder_faults, resolve_checkpoint
from trainer.config import LoopConfig


@dataclass(frozen=True)
class Retention:
    """What is kept. A checkpoint stays when one of the rules wants it."""

    last: int
    every: int | None = None  # samples: the first checkpoint at or after each multiple, for ever
    best: int = 0  # of those with the lowest loss

    @staticmethod
    def of(train: LoopConfig) -> Retention:
        """A run's own."""
        return Retention(train.keep, train.keep_every, train.keep_best)

    def kept(self, losses: Mapping[int, float | None]) -> set[int]:
        """Which of the checkpoints, {samples: loss}, stay.

        What is a milestone stays one when others have gone, so nothing needs to be written down.
        """
        order = sorted(losses)
        kept = set(order[-self.last :])
        if self.every is not None:
            befores = [0, *order]
            crossed = zip(befores, order, strict=False)
            kept |= {now for before, now in crossed if before // self.every != now // self.every}
        found = [(loss, samples) for samples, loss in losses.items() if loss is not None]
        return kept | {samples for _, samples in sorted(found)[: self.best]}


def removable(run: Path, retention: Retention, newest: Path) -> list[Path]:
    """Checkpoints that no rule keeps, oldest first; never `newest`, which `latest` names."""
    folders = {int(path.name): path for path in checkpoint_folders(run)}
    ranked = retention.best > 0
    kept = retention.kept({n: _loss(path) if ranked else None for n, path in folders.items()})
    return [path for samples, path in folders.items() if samples not in kept and path != newest]


def prune(run: Path, retention: Retention, newest: Path) -> None:
    """Delete what need not stay, now that `newest` is complete and named by `latest`."""
    for folder in removable(run, retention, newest):
        remove(folder)


@dataclass(frozen=True)
class Pruned:
    """What pruning by hand did, or would do."""

    removed: Mapping[str, int]  # checkpoint → bytes on the disk
    kept: Sequence[str]


def prune_by_hand(run: Path, retention: Retention, dry_run: bool) -> Pruned:
    """Delete what no rule keeps of a run that nobody trains.

    Raises:
        UserError: somebody does, there is no checkpoint, or what `latest` names is damaged.
    """
    with nullcontext() if dry_run else Lease(run, visitor=True):
        newest = resolve_checkpoint(run).folder
        problems = folder_faults(newest)
        if problems:
            raise UserError(f"{problems[0]}; `latest` names it, so nothing is deleted")
        doomed = removable(run, retention, newest)
        removed = {folder.name: _size(folder) for folder in doomed}
        for folder in () if dry_run else doomed:
            remove(folder)
    kept = [folder.name for folder in checkpoint_folders(run) if folder.name not in removed]
    return Pruned(removed, kept)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _loss(folder: Path) -> float | None:
    try:
        return read_manifest(folder).loss
    except UserError:  # damaged: it has its age alone
        return None
