"""RUN/snapshots/SAMPLES/: averages by power functions, kept for others that are made after the run.

A snapshot has the form of a checkpoint, with the averages as its only kinds.
"""

from __future__ import annotations

from pathlib import Path

from base.errors import UserError
from trainer.checkpoint.manifest import IDENTITY
from trainer.checkpoint.read import Checkpoint, faults, open_checkpoint
from trainer.checkpoint.write import complete_folders, remove_folder, remove_leftovers

SNAPSHOTS = "snapshots"


def remove_later_snapshots(run: Path, samples: int) -> None:
    """Delete what lies beyond `samples`, from where the run goes on: those steps come again.

    For the one process that owns the run.
    """
    remove_leftovers(run / SNAPSHOTS)
    for folder in complete_folders(run / SNAPSHOTS):
        if int(folder.name) > samples:
            remove_folder(folder)


def read_snapshots(run: Path, samples: int | None = None) -> list[Checkpoint]:
    """The snapshots up to the one at `samples` (None: the last), oldest first, each one whole.

    Raises:
        UserError: there is none, one is damaged, or they are of several runs.
    """
    folders = complete_folders(run / SNAPSHOTS)
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
