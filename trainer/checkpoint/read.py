"""Reading checkpoints: which is asked for, what is wrong with it, ranges of its tensors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from base.errors import UserError
from base.files import sha256_file
from trainer.checkpoint.folders import complete_checkpoints, latest_checkpoint
from trainer.checkpoint.manifest import (
    LATEST,
    SLICES,
    TRAINER,
    Manifest,
    rank_file,
    read_manifest,
    slice_key,
)
from trainer.checkpoint.records import read_record
from trainer.checkpoint.tensors import FileRecord, TensorFile
from trainer.state import TrainState, state_from_json

_MOST_BYTES = 1 << 26  # of trainer.json


class Checkpoint(NamedTuple):
    """A folder whose manifest was read."""

    folder: Path
    manifest: Manifest

    def state(self) -> TrainState:
        """Progress at the time of the save.

        Raises:
            UserError: the record is damaged, or another checkpoint's.
        """
        path = self.folder / TRAINER
        state = state_from_json(read_record(path, _MOST_BYTES), str(path))
        if state.samples != self.manifest.samples:
            expected = f"{self.manifest.samples} as in the manifest"
            raise UserError(f"{path}: samples: got {state.samples}, expected {expected}")
        return state


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read a folder's manifest, without looking at the files it names.

    Raises:
        UserError: there is no readable manifest.
    """
    return Checkpoint(folder, read_manifest(folder))


def faults(checkpoint: Checkpoint, part: int = 0, parts: int = 1) -> list[str]:
    """What is wrong with a checkpoint's files, one line each; empty when all is as written.

    Several ranks share the files: this looks at the `part`-th share of `parts`, large files first.
    """
    files = sorted(checkpoint.manifest.files.items(), key=lambda file: (-file[1].bytes, file[0]))
    found = (file_fault(checkpoint.folder / name, record) for name, record in files[part::parts])
    return [fault for fault in found if fault is not None]


def require_whole(checkpoint: Checkpoint) -> None:
    """Compare all files with the manifest, before something new is made of them.

    Raises:
        UserError: one is not as it was written.
    """
    found = faults(checkpoint)
    if found:
        raise UserError(found[0])


def folder_faults(folder: Path) -> list[str]:
    """What is wrong with a checkpoint's folder, of which nothing is known yet."""
    try:
        checkpoint = open_checkpoint(folder)
        found = faults(checkpoint)
        if not found:
            checkpoint.state()
        return found
    except UserError as error:
        return [str(error)]


def file_fault(path: Path, record: FileRecord) -> str | None:
    """What is wrong with a file, by its size and then by its hash."""
    try:
        fault = size_fault(path, record)
        if fault is None and sha256_file(path) != record.sha256:
            fault = f"{path}: its bytes have changed since it was written"
    except OSError as error:
        fault = f"{path}: {error.strerror}"
    return fault


def size_fault(path: Path, record: FileRecord) -> str | None:
    """What is wrong with a file, as far as its kind and its size tell."""
    if path.is_symlink() or (path.parent.name == SLICES and path.parent.is_symlink()):
        return f"{path}: is a link, or behind one, expected a file"
    if not path.is_file():
        return f"{path}: missing"
    if path.stat().st_size != record.bytes:
        return f"{path}: got {path.stat().st_size} bytes, expected {record.bytes}"
    return None


def resolve_checkpoint(run: Path, samples: int | None = None) -> Checkpoint:
    """The checkpoint of `run` at `samples`, or the one that `latest` names.

    Raises:
        UserError: there is none; the message lists those there are.
    """
    if samples is None:
        latest = latest_checkpoint(run)
        if latest is None and complete_checkpoints(run):
            raise UserError(f"{run / LATEST}: missing; choose with --at, or let `train` mend it")
        if latest is None:
            raise UserError(f"{run}: no checkpoint yet (no file `{LATEST}`)")
        return open_checkpoint(latest)
    for folder in complete_checkpoints(run):
        if int(folder.name) == samples:
            return open_checkpoint(folder)
    there = ", ".join(str(int(path.name)) for path in complete_checkpoints(run)) or "none"
    raise UserError(f"{run}: no checkpoint at {samples} samples; there are: {there}")


class SliceReader:
    """Gives ranges of stored tensors, whichever ranks wrote them."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._files: dict[int, TensorFile] = {}

    @property
    def manifest(self) -> Manifest:
        """What there is to read."""
        return self._checkpoint.manifest

    def __call__(self, kind: str, name: str, start: int, count: int) -> Tensor:
        """Elements [start, start + count) of the flattened tensor, fp32 [count].

        Raises:
            UserError: the checkpoint has no such tensor.
        """
        record = self._checkpoint.manifest.tensors.get(name)
        if record is None or kind not in self._checkpoint.manifest.kinds:
            raise UserError(f"{self._checkpoint.folder}: holds no {kind} of {name}")
        result = torch.empty(count, dtype=torch.float32)
        for part in record.ranges:
            first = max(start, part.start)
            last = min(start + count, part.start + part.length)
            if first < last:
                file, key = self._file(part.rank), slice_key(kind, name)
                if file.dtype(key, part.length) != result.dtype:
                    raise UserError(f"{self._path(part.rank)}: {kind} of {name} is not float32")
                file.read(key, first - part.start, result[first - start : last - start])
        return result

    def fixed(self, name: str) -> Tensor:
        """An untrained tensor."""
        shape, key = self.manifest.fixed[name], slice_key("fixed", name)
        tensor = torch.empty(math.prod(shape), dtype=self._file(0).dtype(key, math.prod(shape)))
        self._file(0).read(key, 0, tensor)
        return tensor.reshape(shape)

    def whole(self, kind: str, name: str) -> Tensor:
        """A trained tensor in its shape, fp32."""
        record = self._checkpoint.manifest.tensors[name]
        return self(kind, name, 0, record.count).reshape(record.shape)

    def _file(self, rank: int) -> TensorFile:
        """A rank's file; a manifest's sizes hold for what is read, or nothing is."""
        if rank not in self._files:
            path = self._path(rank)
            fault = size_fault(path, self.manifest.files[rank_file(rank)])
            if fault is not None:
                raise UserError(fault)
            self._files[rank] = TensorFile(path)
        return self._files[rank]

    def _path(self, rank: int) -> Path:
        return self._checkpoint.folder / rank_file(rank)
