"""Saving: every rank its slices, the manifest last, a rename, and only then `latest`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from base.errors import UserError, one_line
from base.files import require_free_space, sha256_file, write_atomic
from trainer.checkpoint.manifest import (
    FOLDER,
    LATEST,
    MANIFEST,
    TRAINER,
    Manifest,
    folder_name,
    join_ranges,
    rank_file,
    slice_key,
)
from trainer.checkpoint.tensors import Entry, FileRecord, entry_of, write_tensors
from trainer.engine.base import Engine, Flat
from trainer.state import TrainState

_SAVING, _REMOVING = ".saving-", ".removing-"


@dataclass(frozen=True)
class Snapshot:
    """What one rank gives to a checkpoint."""

    flats: Sequence[Flat]
    fixed: Mapping[str, Tensor]  # untrained tensors; rank 0's are written
    state: TrainState
    facts: Mapping[str, Any]


def save_checkpoint(run: Path, engine: Engine, snapshot: Snapshot, keep: int) -> Path:
    """Write a checkpoint on all ranks together; the last `keep` remain.

    When this is interrupted at whatever moment, the folder that `latest` names is whole, and so is
    every folder of `checkpoints/` that has a manifest.

    Raises:
        UserError: a rank could not write; all ranks raise alike, and `latest` is as it was.
    """
    target = write_folder(run / FOLDER, engine, snapshot)
    _together(engine, lambda: _name_latest(run, target) if engine.rank == 0 else None)
    if engine.rank == 0:
        _prune(target.parent, target, keep)
    return target


def write_folder(root: Path, engine: Engine, snapshot: Snapshot) -> Path:
    """Write all ranks' slices under a working name in `root`, then give the folder its name.

    Raises:
        UserError: a rank could not write; all ranks raise alike, and `root` has nothing new.
    """
    target = root / folder_name(snapshot.state.samples)
    working = root / f"{_SAVING}{target.name}"
    _together(engine, lambda: _begin(root, working, snapshot) if engine.rank == 0 else None)
    parts = _together(engine, lambda: _write_slices(working, engine.rank, snapshot))
    _together(
        engine,
        lambda: _complete(working, target, parts, snapshot) if engine.rank == 0 else None,
    )
    return target


def adopt(run: Path, folder: Path, keep: int) -> None:
    """Complete what an interrupted save left undone after `folder` was whole: `latest`, pruning.

    For the one process that owns the run, once it has verified `folder` as the newest.
    """
    remove_leftovers(run / FOLDER)
    latest = run / LATEST
    if not latest.is_file() or latest.read_text(encoding="utf-8").strip() != folder.name:
        _name_latest(run, folder)
    _prune(run / FOLDER, folder, keep)


def remove_leftovers(root: Path) -> None:
    """Delete what interrupted saves and removals left; nobody else may be writing."""
    for prefix in (_SAVING, _REMOVING):
        for folder in root.glob(f"{prefix}*"):
            shutil.rmtree(folder)


def remove_folder(folder: Path) -> None:
    """Delete a checkpoint so that no moment shows a part of it under its name."""
    doomed = folder.with_name(f"{_REMOVING}{folder.name}")
    if doomed.exists():
        shutil.rmtree(doomed)
    os.rename(folder, doomed)
    shutil.rmtree(doomed)


def complete_checkpoints(run: Path) -> list[Path]:
    """A run's checkpoints with a manifest, oldest first."""
    return complete_folders(run / FOLDER)


def complete_folders(root: Path) -> list[Path]:
    """Folders of `root` with a manifest, oldest first."""
    if not root.is_dir():
        return []
    named = [path for path in root.iterdir() if path.name.isdigit()]
    return sorted(
        (path for path in named if (path / MANIFEST).is_file()), key=lambda path: int(path.name)
    )


def _begin(root: Path, working: Path, snapshot: Snapshot) -> None:
    size = sum(t.numel() * 4 for flat in snapshot.flats for t in flat.tensors.values())
    root.mkdir(parents=True, exist_ok=True)
    remove_leftovers(root)
    require_free_space(root, size + (16 << 20))
    (working / "slices").mkdir(parents=True)


def _write_slices(working: Path, rank: int, snapshot: Snapshot) -> dict[str, Any]:
    """Write this rank's file, read it back, and tell what it holds."""
    path = working / rank_file(rank)
    fixed = snapshot.fixed if rank == 0 else {}
    entries = [*_slices(snapshot.flats)]
    entries += [
        entry_of(slice_key("fixed", name), tensor.reshape(-1)) for name, tensor in fixed.items()
    ]
    record = write_tensors(path, entries)
    if sha256_file(path) != record.sha256:
        raise UserError(f"{path}: what was read back is not what was written")
    pieces = {
        piece.name: (list(piece.shape), piece.start, piece.length)
        for flat in snapshot.flats
        for piece in flat.pieces
    }
    return {"file": tuple(record), "pieces": pieces}


def _slices(flats: Sequence[Flat]) -> list[Entry]:
    return [
        entry_of(slice_key(kind, piece.name), tensor.detach().narrow(0, piece.offset, piece.length))
        for flat in flats
        for kind, tensor in flat.tensors.items()
        for piece in flat.pieces
    ]


def _complete(
    working: Path, target: Path, parts: Sequence[dict[str, Any]], snapshot: Snapshot
) -> None:
    """Rank 0, when every rank's file is on the disk: give the folder its name."""
    files = {rank_file(rank): FileRecord(*part["file"]) for rank, part in enumerate(parts)}
    trainer = json.dumps(snapshot.state.to_json(), indent=2) + "\n"
    write_atomic(working / TRAINER, trainer)
    files[TRAINER] = FileRecord(len(trainer.encode()), sha256_file(working / TRAINER))
    manifest = Manifest(
        samples=snapshot.state.samples,
        steps=snapshot.state.steps,
        world_size=len(parts),
        kinds=tuple(snapshot.flats[0].tensors),
        tensors=join_ranges([part["pieces"] for part in parts]),
        fixed={name: tuple(tensor.shape) for name, tensor in snapshot.fixed.items()},
        files=files,
        facts=snapshot.facts,
    )
    _sync(working / "slices")
    write_atomic(working / MANIFEST, json.dumps(manifest.to_json()) + "\n")
    if target.exists():  # a resume that could use it would not save it again: it is damaged
        remove_folder(target)
    os.rename(working, target)
    _sync(target.parent)


def _name_latest(run: Path, folder: Path) -> None:
    write_atomic(run / LATEST, f"{folder.name}\n")


def _together(engine: Engine, work: Any) -> list[Any]:
    """Do `work` on all ranks; the results of all, or the same error on all."""
    result, error = None, None
    try:
        result = work()
    except (OSError, UserError) as caught:
        error = one_line(caught) or type(caught).__name__
    outcomes = engine.gather((result, error))
    for rank, (_, message) in enumerate(outcomes):
        if message is not None:
            raise UserError(f"checkpoint not saved: {message} (rank {rank})")
    return [outcome for outcome, _ in outcomes]


def _prune(root: Path, newest: Path, keep: int) -> None:
    others = [path for path in complete_checkpoints(root.parent) if path != newest]
    for path in others[: max(len(others) + 1 - keep, 0)]:
        remove_folder(path)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
