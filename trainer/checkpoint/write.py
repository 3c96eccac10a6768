"""Writing a checkpoint: every rank its slices, the manifest last, a rename, and only then `latest`.

Three steps. What comes between them, on whom each waits, is `trainer.checkpoint.saver`'s.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

from torch import Tensor

from base.errors import UserError
from base.files import require_free_space, sha256_file, sync, write_atomic
from trainer.checkpoint.folders import (
    commit,
    point_latest,
    remove_damaged,
    remove_leftovers,
    working_folder,
)
from trainer.checkpoint.manifest import (
    MANIFEST,
    SLICES,
    TRAINER,
    Manifest,
    join_ranges,
    rank_file,
    sealed,
    slice_key,
)
from trainer.checkpoint.read import file_fault, open_checkpoint, size_fault
from trainer.checkpoint.retention import Retention, prune
from trainer.checkpoint.tensors import Entry, FileRecord, entry_of, write_tensors
from trainer.engine.base import Flat
from trainer.state import TrainState

_SPARE = 16 << 20  # bytes of disk for all but the tensors


@dataclass(frozen=True)
class Snapshot:
    """What one rank gives to a checkpoint: how things stood at one moment."""

    flats: Sequence[Flat]
    fixed: Mapping[str, Tensor]  # untrained tensors, whole; of rank 0 alone
    state: TrainState
    facts: Mapping[str, Any]
    loss: float | None  # mean over the samples applied since the save before

    @property
    def bytes(self) -> int:
        """Of all tensors."""
        flat = (tensor for flat in self.flats for tensor in flat.tensors.values())
        return sum(t.numel() * t.element_size() for t in (*flat, *self.fixed.values()))


class Part(NamedTuple):
    """What one rank's file holds: {tensor: (shape, start, count)}."""

    file: FileRecord
    pieces: Mapping[str, tuple[Sequence[int], int, int]]


def begin(target: Path, size: int) -> None:
    """Rank 0: make the folder for a checkpoint, when there is room for `size` bytes.

    Raises:
        UserError: the disk has no room for it.
    """
    root = target.parent
    root.mkdir(parents=True, exist_ok=True)
    remove_leftovers(root)
    require_free_space(root, size + _SPARE)
    (working_folder(target) / SLICES).mkdir(parents=True)


def write_slices(target: Path, rank: int, snapshot: Snapshot, given_up: Event) -> Part:
    """Every rank: write the file, read it back from the disk, and tell what it holds.

    Raises:
        UserError: what was read back is not what was written, or the save was given up.
    """
    path = working_folder(target) / rank_file(rank)
    record = write_tensors(path, [_unless(given_up, entry) for entry in _entries(snapshot)])
    _forget(path)
    if file_fault(path, record) is not None:
        raise UserError(f"{path}: what was read back is not what was written")
    pieces = {
        piece.name: (piece.shape, piece.start, piece.length)
        for flat in snapshot.flats
        for piece in flat.pieces
    }
    return Part(record, pieces)


def complete(
    run: Path, target: Path, parts: Sequence[Part], snapshot: Snapshot, retention: Retention
) -> None:
    """Rank 0, when every rank has verified its file: manifest, name, `latest`, and what may go.

    Interrupted at whatever moment, the folder that `latest` names is whole, and so is every folder
    of `checkpoints/` that has a checkpoint's name.

    Raises:
        UserError: what was read back is not what was written; `latest` is as it was.
    """
    complete_folder(target, parts, snapshot)
    point_latest(run, target)
    try:
        remove_damaged(run)
        prune(run, retention, target)
    except OSError as error:  # the checkpoint is safe, and what is left is tried again
        print(f"warning: {target}: saved, but an older one stays: {error}", file=sys.stderr)


def complete_folder(target: Path, parts: Sequence[Part], snapshot: Snapshot) -> None:
    """Rank 0: write the manifest and give the folder its name.

    Raises:
        UserError: what was read back is not what was written.
    """
    seal(
        target,
        [part.file for part in parts],
        Manifest(
            samples=snapshot.state.samples,
            steps=snapshot.state.steps,
            world_size=len(parts),
            kinds=tuple(snapshot.flats[0].tensors),
            tensors=join_ranges([part.pieces for part in parts]),
            fixed={name: tuple(tensor.shape) for name, tensor in snapshot.fixed.items()},
            files={},
            facts=snapshot.facts,
            loss=snapshot.loss,
        ),
        snapshot.state,
    )


def seal(target: Path, slices: Sequence[FileRecord], manifest: Manifest, state: TrainState) -> None:
    """Write trainer.json, then the manifest with all files in it, and give the folder its name.

    Raises:
        UserError: what was read back is not what was written.
    """
    working = working_folder(target)
    files = {rank_file(rank): file for rank, file in enumerate(slices)}
    trainer = json.dumps(state.to_json(), indent=2) + "\n"
    write_atomic(working / TRAINER, trainer)
    files[TRAINER] = FileRecord(len(trainer.encode()), sha256_file(working / TRAINER))
    manifest = replace(manifest, files=files)
    sync(working / SLICES)
    write_atomic(working / MANIFEST, json.dumps(sealed(manifest.to_json())) + "\n")
    _require_readable(working)
    commit(working, target)


def _require_readable(working: Path) -> None:
    """The manifest and all that it names, as whoever resumes will find it; ranks hashed theirs."""
    checkpoint = open_checkpoint(working)
    checkpoint.state()
    for name, record in checkpoint.manifest.files.items():
        fault = size_fault(working / name, record)
        if fault is not None:
            raise UserError(fault)


def _entries(snapshot: Snapshot) -> list[Entry]:
    slices = [
        entry_of(slice_key(kind, piece.name), tensor.detach().narrow(0, piece.offset, piece.length))
        for flat in snapshot.flats
        for kind, tensor in flat.tensors.items()
        for piece in flat.pieces
    ]
    return slices + [
        entry_of(slice_key("fixed", name), tensor.reshape(-1))
        for name, tensor in snapshot.fixed.items()
    ]


def _unless(given_up: Event, entry: Entry) -> Entry:
    """The entry, which is not written any more when the save was given up."""

    def load() -> Tensor:
        if given_up.is_set():
            raise UserError("given up")
        return entry.load()

    return entry._replace(load=load)


def _forget(path: Path) -> None:
    """Let the system drop its copy of a file, so that it is read from the disk again."""
    if not hasattr(os, "posix_fadvise"):  # macOS
        return
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
