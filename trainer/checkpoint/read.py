"""Reading checkpoints: verification, choice of the one to resume from, ranges of tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from base.errors import UserError
from base.files import read_json, sha256_file
from trainer.checkpoint.manifest import (
    FOLDER,
    LATEST,
    TRAINER,
    Manifest,
    rank_file,
    read_manifest,
    slice_key,
)
from trainer.checkpoint.tensors import TensorFile
from trainer.checkpoint.write import complete_checkpoints
from trainer.state import TrainState, state_from_json


class Checkpoint(NamedTuple):
    """A folder whose manifest was read."""

    folder: Path
    manifest: Manifest

    def state(self) -> TrainState:
        """Progress at the time of the save."""
        path = self.folder / TRAINER
        return state_from_json(read_json(path), str(path))


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read a folder's manifest, without looking at the files it names.

    Raises:
        UserError: there is no readable manifest.
    """
    return Checkpoint(folder, read_manifest(folder))


def faults(checkpoint: Checkpoint) -> list[str]:
    """What is wrong with a checkpoint's files, one line each; empty when all is as written."""
    found = []
    for name, record in checkpoint.manifest.files.items():
        path = checkpoint.folder / name
        if not path.is_file():
            found.append(f"{path}: missing")
        elif path.stat().st_size != record.bytes:
            found.append(f"{path}: got {path.stat().st_size} bytes, expected {record.bytes}")
        elif sha256_file(path) != record.sha256:
            found.append(f"{path}: its bytes have changed since it was written")
    found += [
        f"{checkpoint.folder}: {name} is not covered by its ranges"
        for name, record in checkpoint.manifest.tensors.items()
        if not record.is_covered()
    ]
    return found


def newest_checkpoint(run: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is whole; None when the run has none at all.

    Damaged ones are passed over, and `warn` is told.

    Raises:
        UserError: there are checkpoints and every one is damaged.
    """
    wrong = ""
    for folder in reversed(complete_checkpoints(run)):
        try:
            checkpoint = open_checkpoint(folder)
            problems = faults(checkpoint)
        except UserError as error:
            problems = [str(error)]
        if not problems:
            return checkpoint
        wrong = wrong or problems[0]
        warn(f"checkpoint {folder.name} is damaged and passed over: {problems[0]}")
    if not wrong and (run / LATEST).is_file():
        named = (run / LATEST).read_text(encoding="utf-8").strip()
        wrong = f"{run / FOLDER / named}: missing, though {run / LATEST} names it"
    if wrong:
        raise UserError(f"{run}: no whole checkpoint is left ({wrong}); use another `out`")
    return None


def resolve_checkpoint(run: Path, samples: int | None = None) -> Checkpoint:
    """The checkpoint of `run` at `samples`, or the one that `latest` names.

    Raises:
        UserError: there is none; the message lists those there are.
    """
    if samples is None:
        latest = run / LATEST
        if not latest.is_file():
            raise UserError(f"{run}: no checkpoint yet (no file `{LATEST}`)")
        return open_checkpoint(run / FOLDER / latest.read_text(encoding="utf-8").strip())
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
                into = result[first - start : last - start]
                self._file(part.rank).read(slice_key(kind, name), first - part.start, into)
        return result

    def fixed(self, name: str) -> Tensor:
        """An untrained tensor."""
        return self._file(0).whole(slice_key("fixed", name), self.manifest.fixed[name])

    def whole(self, kind: str, name: str) -> Tensor:
        """A trained tensor in its shape, fp32."""
        record = self._checkpoint.manifest.tensors[name]
        return self(kind, name, 0, record.count).reshape(record.shape)

    def _file(self, rank: int) -> TensorFile:
        if rank not in self._files:
            self._files[rank] = TensorFile(self._checkpoint.folder / rank_file(rank))
        return self._files[rank]
