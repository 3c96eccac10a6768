"""RUN/snapshots/SAMPLES/: averages by power functions, kept for others that are made after the run.

A snapshot has the form of a checkpoint, with the averages as its only kinds.
"""

from __future__ import annotations

from pathlib import Path

from base.errors import UserError
from trainer.checkpoint.agree import Ranks, agreed, attempt
from trainer.checkpoint.folders import named_folders, remove, remove_leftovers
from trainer.checkpoint.manifest import IDENTITY
from trainer.checkpoint.read import Checkpoint, faults, open_checkpoint
from trainer.checkpoint.saver import Series
from trainer.checkpoint.staging import Staging
from trainer.checkpoint.write import complete_folder

SNAPSHOTS = "snapshots"


def snapshot_folders(run: Path) -> list[Path]:
    """Folders with a snapshot's name, oldest first; damage may have cost them their manifest."""
    return named_folders(run / SNAPSHOTS)


def snapshots(run: Path, staging: Staging | None) -> Series:
    """A run's snapshots, which all stay."""
    return Series(run / SNAPSHOTS, "snapshot of averages not saved", complete_folder, staging)


def remove_later_snapshots(run: Path, samples: int, ranks: Ranks) -> None:
    """Delete what lies beyond `samples`, from where the run goes on: those steps come again.

    Raises:
        UserError: the first rank may not change the folder; all ranks raise alike.
    """

    def work() -> None:
        if ranks.rank == 0:
            remove_leftovers(run / SNAPSHOTS)
            for folder in snapshot_folders(run):
                if int(folder.name) > samples:
                    remove(folder)

    agreed(ranks, attempt(work), "cannot go on")


def read_snapshots(run: Path, samples: int | None = None) -> list[Checkpoint]:
    """The snapshots up to the one at `samples` (None: the last), oldest first, each one whole.

    Raises:
        UserError: there is none, one is damaged, or they are of several runs.
    """
    folders = snapshot_folders(run)
    if not folders:
        raise UserError(f"{run}: no snapshots; train with ema.powers and ema.snapshot_every")
    there = [int(folder.name) for folder in folders]
    if samples is not None and samples not in there:
        raise UserError(
            f"{run}: no snapshot at {samples} samples; there are: {', '.join(map(str, there))}"
        )
    last = there[-1] if samples is None else samples
    found = [open_checkpoint(folder) for folder in folders if int(folder.name) <= last]
    for snapshot in found:
        _require_same_run(found[-1], snapshot)
        if wrong := faults(snapshot):
            raise UserError(wrong[0])
    return found


def _require_same_run(one: Checkpoint, other: Checkpoint) -> None:
    for name in IDENTITY:
        if one.manifest.facts.get(name) != other.manifest.facts.get(name):
            raise UserError(f"{other.folder}: {name} differs from that of {one.folder.name}")
    shapes = [
        {name: record.shape for name, record in checkpoint.manifest.tensors.items()}
        for checkpoint in (one, other)
    ]
    if shapes[0] != shapes[1]:
        raise UserError(f"{other.folder}: its tensors are not those of {one.folder.name}")
