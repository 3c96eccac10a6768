"""Weights out of a run: one safetensors file, or tensors for sampling."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from base.errors import UserError
from base.files import atomic_path
from trainer.checkpoint.read import (
    Checkpoint,
    SliceReader,
    require_whole,
    resolve_checkpoint,
)
from trainer.checkpoint.tensors import Entry, write_tensors
from trainer.ema.profiles import KIND

RAW = "raw"  # the masters, as trained; all else is named as checkpoints name the averages


def export(
    run: Path, weights: str, out: Path, samples: int | None = None, replace: bool = False
) -> Path:
    """Write a run's weights as one safetensors file, fp32, holding one tensor at a time.

    `weights`: `raw`, `ema`, or a power function's average such as `ema_0.050`.

    Raises:
        UserError: the run has no such checkpoint or weights, or a file of it is damaged; `out` is
            there already and not to be replaced, or is a folder.
    """
    checkpoint = resolve_checkpoint(run, samples)
    require_whole(checkpoint)
    kind, reader = stored_kind(checkpoint, weights), SliceReader(checkpoint)
    about = {"run": run.name, "samples": str(checkpoint.manifest.samples), "weights": weights}
    write_weights(out, reader, lambda name: reader.whole(kind, name), about, replace)
    return out


def read_weights(run: Path, weights: str = KIND, samples: int | None = None) -> dict[str, Tensor]:
    """A run's weights, named as for `export`, as its model's state dict, fp32 on the CPU.

    Raises:
        UserError: the run has no such checkpoint or weights.
    """
    checkpoint = resolve_checkpoint(run, samples)
    kind, reader = stored_kind(checkpoint, weights), SliceReader(checkpoint)
    entries = _entries(reader, lambda name: reader.whole(kind, name))
    return {entry.name: entry.load() for entry in entries}


def write_weights(
    out: Path,
    reader: SliceReader,
    trained: Callable[[str], Tensor],
    about: Mapping[str, str],
    replace: bool,
) -> None:
    """Write `trained` of each tensor's name, and the reader's untrained tensors, as one file.

    Raises:
        UserError: `out` is there already and not to be replaced, or is a folder.
    """
    if out.is_dir():
        raise UserError(f"{out}: is a folder, expected a file such as weights.safetensors")
    if out.exists() and not replace:
        raise UserError(f"{out}: is there already; choose another file, or --replace it")
    with atomic_path(out) as temporary:
        write_tensors(temporary, _entries(reader, trained), {"format": "pt", **about})


def stored_kind(checkpoint: Checkpoint, weights: str) -> str:
    """The kind that a checkpoint holds `weights` by.

    Raises:
        UserError: it has no such weights; the message lists those there are.
    """
    averages = [kind for kind in checkpoint.manifest.kinds if kind.startswith(KIND)]
    if weights == RAW:
        return "master"
    if weights not in averages:
        there = ", ".join([RAW, *averages])
        raise UserError(f"weights: got {weights!r}, expected one of {there}; {checkpoint.folder}")
    return weights


def _entries(reader: SliceReader, trained: Callable[[str], Tensor]) -> list[Entry]:
    manifest = reader.manifest
    entries = [
        Entry(name, torch.float32, record.shape, lambda name=name: trained(name))  # type: ignore[misc]
        for name, record in manifest.tensors.items()
    ]
    entries += [
        Entry(name, reader.fixed(name).dtype, shape, lambda name=name: reader.fixed(name))  # type: ignore[misc]
        for name, shape in manifest.fixed.items()
    ]
    return sorted(entries)
