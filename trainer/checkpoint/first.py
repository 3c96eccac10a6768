"""The first checkpoint of a run whose weights are not ours: no step taken, no data seen."""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from base.errors import UserError
from trainer.checkpoint.folders import point_latest, working_folder
from trainer.checkpoint.manifest import (
    FOLDER,
    Manifest,
    Range,
    TensorRecord,
    folder_name,
    rank_file,
    slice_key,
)
from trainer.checkpoint.read import file_fault
from trainer.checkpoint.tensors import Entry, write_tensors
from trainer.checkpoint.write import begin, seal
from trainer.ema.profiles import KIND
from trainer.state import TrainState

_KINDS = ("master", KIND)  # moments are zero before the first step, and are not written


def first_bytes(weights: Mapping[str, tuple[int, ...]]) -> int:
    """Of the checkpoint's tensors, by their shapes."""
    return sum(4 * len(_KINDS) * torch.Size(shape).numel() for shape in weights.values())


def write_first(
    run: Path, weights: Mapping[str, Tensor], trained: Set[str], facts: Mapping[str, Any], seed: int
) -> Path:
    """Write `weights` as masters and as their own average; those not in `trained` as they are.

    One tensor at a time is made float32. Interrupted, the run has no checkpoint.

    Raises:
        UserError: the disk has no room, or did not give back what was written.
    """
    state = TrainState(seed)
    target = run / FOLDER / folder_name(state.samples)
    tensors = {name: value for name, value in weights.items() if name in trained}
    fixed = {name: value for name, value in weights.items() if name not in trained}
    entries = [
        Entry(slice_key(kind, name), torch.float32, (value.numel(),), lambda v=value: _flat(v))  # type: ignore[misc]
        for kind in _KINDS
        for name, value in tensors.items()
    ]
    entries += [
        Entry(slice_key("fixed", name), torch.float32, (value.numel(),), lambda v=value: _flat(v))  # type: ignore[misc]
        for name, value in fixed.items()
    ]
    begin(target, first_bytes({name: tuple(value.shape) for name, value in weights.items()}))
    path = working_folder(target) / rank_file(0)
    record = write_tensors(path, entries)
    if file_fault(path, record) is not None:
        raise UserError(f"{path}: what was read back is not what was written")
    manifest = Manifest(
        samples=state.samples,
        steps=state.steps,
        world_size=1,
        kinds=_KINDS,
        tensors={
            name: TensorRecord(tuple(value.shape), (Range(0, 0, value.numel()),))
            for name, value in tensors.items()
        },
        fixed={name: tuple(value.shape) for name, value in fixed.items()},
        files={},
        facts=facts,
    )
    seal(target, [record], manifest, state)
    point_latest(run, target)
    return target


def _flat(tensor: Tensor) -> Tensor:
    return tensor.float().reshape(-1)
