"""Weights out of a run: one safetensors file, or tensors for sampling."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from base.errors import UserError
from base.files import atomic_path
from trainer.checkpoint.read import Checkpoint, SliceReader, resolve_checkpoint
from trainer.checkpoint.tensors import Entry, write_tensors
from trainer.ema import KIND as EMA

Which = Literal["ema", "raw"]


def export(run: Path, which: Which, out: Path, samples: int | None = None) -> Path:
    """Write a run's weights as one safetensors file, fp32, holding one tensor at a time.

    Raises:
        UserError: the run has no such checkpoint, or `out` is a folder.
    """
    if out.is_dir():
        raise UserError(f"{out}: is a folder, expected a file such as weights.safetensors")
    checkpoint = resolve_checkpoint(run, samples)
    metadata = {"format": "pt", "run": run.name, "samples": str(checkpoint.manifest.samples)}
    with atomic_path(out) as temporary:
        write_tensors(temporary, _entries(checkpoint, which), {**metadata, "weights": which})
    return out


def read_weights(run: Path, which: Which = "ema", samples: int | None = None) -> dict[str, Tensor]:
    """A run's weights as its model's state dict, fp32 on the CPU.

    Raises:
        UserError: the run has no such checkpoint.
    """
    checkpoint = resolve_checkpoint(run, samples)
    return {entry.name: entry.load() for entry in _entries(checkpoint, which)}


def _entries(checkpoint: Checkpoint, which: Which) -> list[Entry]:
    reader = SliceReader(checkpoint)
    kind = EMA if which == "ema" else "master"
    trained = [
        Entry(name, torch.float32, record.shape, lambda name=name: reader.whole(kind, name))  # type: ignore[misc]
        for name, record in checkpoint.manifest.tensors.items()
    ]
    fixed = [
        Entry(name, reader.fixed(name).dtype, shape, lambda name=name: reader.fixed(name))  # type: ignore[misc]
        for name, shape in checkpoint.manifest.fixed.items()
    ]
    return sorted(trained + fixed)
