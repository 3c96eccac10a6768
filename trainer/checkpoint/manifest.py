"""manifest.json of a checkpoint: which file holds which range of which tensor, and its hash."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from base.errors import UserError
from base.files import read_json
from trainer.checkpoint.tensors import FileRecord

VERSION = 1
FOLDER = "checkpoints"
LATEST = "latest"
MANIFEST = "manifest.json"
TRAINER = "trainer.json"
IDENTITY = ("stage", "model", "seed", "data")  # facts; with another value it is another run


class Range(NamedTuple):
    """A range of a flattened tensor in one rank's file."""

    rank: int
    start: int
    length: int


@dataclass(frozen=True)
class TensorRecord:
    """A trained tensor; every kind of it (masters, moments, averages) has the same ranges."""

    shape: tuple[int, ...]
    ranges: tuple[Range, ...]

    @property
    def count(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    def is_covered(self) -> bool:
        """Whether the ranges hold every element once."""
        place = 0
        for part in sorted(self.ranges, key=lambda part: part.start):
            if part.start != place or part.length <= 0:
                return False
            place += part.length
        return place == self.count


@dataclass(frozen=True)
class Manifest:
    """The record that makes a folder a checkpoint. Written last."""

    samples: int
    steps: int
    world_size: int
    kinds: tuple[str, ...]  # "master", "exp_avg", "exp_avg_sq", "ema", "ema_0.050", …
    tensors: Mapping[str, TensorRecord]
    fixed: Mapping[str, tuple[int, ...]]  # untrained tensors, whole, in rank 0's file
    files: Mapping[str, FileRecord]
    facts: Mapping[str, Any]  # fingerprints of model, data and CLIP; engine, precision

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "version": VERSION,
            "samples": self.samples,
            "steps": self.steps,
            "world_size": self.world_size,
            "kinds": list(self.kinds),
            "tensors": {
                name: {
                    "shape": list(record.shape),
                    "dtype": "float32",
                    "ranges": [part._asdict() for part in record.ranges],
                }
                for name, record in self.tensors.items()
            },
            "fixed": {name: list(shape) for name, shape in self.fixed.items()},
            "files": {name: record._asdict() for name, record in self.files.items()},
            "facts": dict(self.facts),
        }


def rank_file(rank: int) -> str:
    """The slices of one rank, relative to the checkpoint."""
    return f"slices/rank_{rank:05d}.safetensors"


def folder_name(samples: int) -> str:
    """The folder of the checkpoint at `samples`."""
    return f"{samples:012d}"


def slice_key(kind: str, name: str) -> str:
    """The name of a range in a rank's file."""
    return f"{kind}/{name}"


def read_manifest(folder: Path) -> Manifest:
    """Read a checkpoint's manifest.

    Raises:
        UserError: it is missing, of another version, or not what it should be.
    """
    path = folder / MANIFEST
    data = read_json(path)
    found = data.get("version") if isinstance(data, dict) else None
    if found != VERSION:
        raise UserError(f"{path}: version: got {found!r}, expected {VERSION}")
    try:
        return _from_json(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not a checkpoint's manifest") from error


def _from_json(data: Mapping[str, Any]) -> Manifest:
    tensors = {
        name: TensorRecord(
            tuple(record["shape"]), tuple(Range(**part) for part in record["ranges"])
        )
        for name, record in data["tensors"].items()
    }
    return Manifest(
        samples=data["samples"],
        steps=data["steps"],
        world_size=data["world_size"],
        kinds=tuple(data["kinds"]),
        tensors=tensors,
        fixed={name: tuple(shape) for name, shape in data["fixed"].items()},
        files={name: FileRecord(**record) for name, record in data["files"].items()},
        facts=data["facts"],
    )


def join_ranges(
    parts: Sequence[Mapping[str, tuple[Sequence[int], int, int]]],
) -> dict[str, TensorRecord]:
    """The tensors that the ranks' parts, {name: (shape, start, count)}, make up.

    Raises:
        ValueError: an element is missing or held twice; such a checkpoint must not be written.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    ranges: dict[str, list[Range]] = {}
    for rank, part in enumerate(parts):
        for name, (shape, start, count) in part.items():
            shapes[name] = tuple(shape)
            ranges.setdefault(name, []).append(Range(rank, start, count))
    tensors = {name: TensorRecord(shapes[name], tuple(ranges[name])) for name in sorted(shapes)}
    for name, record in tensors.items():
        if not record.is_covered():
            raise ValueError(f"{name}: the ranks' ranges {record.ranges} do not tile it")
    return tensors
