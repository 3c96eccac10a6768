"""manifest.json of a checkpoint: which file holds which range of which tensor, and its hash."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from base.errors import UserError
from trainer.checkpoint.records import array, integer, mapping, number, read_record, text
from trainer.checkpoint.tensors import FileRecord

VERSION = 1
FOLDER = "checkpoints"
LATEST = "latest"
MANIFEST = "manifest.json"
TRAINER = "trainer.json"
SLICES = "slices"
IDENTITY = ("stage", "model", "seed", "data")  # facts; with another value it is another run
SEAL = "sha256"
_FIRST = frozenset(  # all fields of the manifests that had no hash of their own
    ("version", "samples", "steps", "world_size", "kinds", "tensors", "fixed", "files", "facts")
)
_MOST_BYTES = 1 << 27
_MOST_SIDES = 64  # torch's own limit


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
    loss: float | None = None  # mean over the samples applied since the save before

    @property
    def bytes(self) -> int:
        """Of all files but the manifest."""
        return sum(record.bytes for record in self.files.values())

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
            "loss": self.loss,
        }


def rank_file(rank: int) -> str:
    """The slices of one rank, relative to the checkpoint."""
    return f"{SLICES}/rank_{rank:05d}.safetensors"


def folder_name(samples: int) -> str:
    """The folder of the checkpoint at `samples`."""
    return f"{samples:012d}"


def slice_key(kind: str, name: str) -> str:
    """The name of a range in a rank's file."""
    return f"{kind}/{name}"


def sealed(data: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest's plain data with the hash of all of it, by which damage to it is noticed."""
    plain = json.dumps(data, separators=(",", ":"))
    return {**data, SEAL: hashlib.sha256(plain.encode()).hexdigest()}


def read_manifest(folder: Path) -> Manifest:
    """Read a checkpoint's manifest; what it says fits together, and files could be so.

    Raises:
        UserError: it is missing, of another version, changed since, or not what it should be.
    """
    path = folder / MANIFEST
    data = read_record(path, _MOST_BYTES)
    found = data.get("version") if isinstance(data, dict) else None
    if found != VERSION:
        raise UserError(f"{path}: version: got {str(found)[:20]}, expected {VERSION}")
    try:
        _require_seal(data)
        return _from_json(data)
    except (KeyError, ValueError) as error:
        lacking = "lacks " if isinstance(error, KeyError) else ""
        raise UserError(f"{path}: not a checkpoint's manifest ({lacking}{error})") from error


def _require_seal(data: dict[str, Any]) -> None:
    """The first manifests have no hash; one whose field was renamed by damage is none of them."""
    seal = data.pop(SEAL, None)
    if seal is None and set(data) <= _FIRST:
        return
    if seal != sealed(data)[SEAL]:
        raise ValueError("its bytes have changed since it was written")


def _from_json(data: Mapping[str, Any]) -> Manifest:
    world_size = integer(data["world_size"])
    loss = data.get("loss")
    manifest = Manifest(
        samples=integer(data["samples"]),
        steps=integer(data["steps"]),
        world_size=world_size,
        kinds=tuple(text(kind) for kind in array(data["kinds"])),
        tensors={
            name: _tensor(name, mapping(record), world_size)
            for name, record in mapping(data["tensors"]).items()
        },
        fixed={name: _shape(shape) for name, shape in mapping(data["fixed"]).items()},
        files={
            name: FileRecord(integer(record["bytes"]), text(record["sha256"]))
            for name, record in mapping(data["files"]).items()
        },
        facts=mapping(data["facts"]),
        loss=None if loss is None else number(loss),
    )
    _require_files(manifest)
    return manifest


def _tensor(name: str, record: Mapping[str, Any], world_size: int) -> TensorRecord:
    parts = [
        Range(
            integer(part["rank"], world_size - 1), integer(part["start"]), integer(part["length"])
        )
        for part in map(mapping, array(record["ranges"]))
    ]
    tensor = TensorRecord(_shape(record["shape"]), tuple(parts))
    if not tensor.is_covered():
        raise ValueError(f"{name} is not covered by its ranges")
    return tensor


def _shape(value: Any) -> tuple[int, ...]:
    sides = array(value)
    if len(sides) > _MOST_SIDES:
        raise ValueError(f"got {len(sides)} dimensions, expected at most {_MOST_SIDES}")
    return tuple(integer(side) for side in sides)


def _require_files(manifest: Manifest) -> None:
    """Exactly the files that a checkpoint has, each large enough for what it is said to hold.

    So a name leads nowhere else, and nobody who has compared sizes makes room for more than that.
    """
    files, ranks = manifest.files, manifest.world_size
    if len(files) != ranks + 1 or set(files) != {TRAINER, *map(rank_file, range(ranks))}:
        raise ValueError(f"files: expected {TRAINER} and the slices of {ranks} ranks alone")
    needed = [0] * ranks
    for tensor in manifest.tensors.values():
        for part in tensor.ranges:
            needed[part.rank] += 4 * part.length * len(manifest.kinds)
    needed[0] += sum(math.prod(shape) for shape in manifest.fixed.values())  # a byte each, or more
    for rank, least in enumerate(needed):
        if files[rank_file(rank)].bytes < least:
            raise ValueError(f"{rank_file(rank)}: too small for what it is said to hold")


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
