"""Selections of a DATASET: sorted keys that curation kept, why the others went, their records."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from base.config import fingerprint
from base.errors import UserError, one_line
from base.files import read_json
from base.places import Place, below, children
from data_pipeline.schema.dataset import (
    Commit,
    DatasetInfo,
    FileRecord,
    read_dataset,
    shard_name,
)

P = TypeVar("P", bound=Place)

SELECTION_VERSION = 1
FOLDER = "selections"

SELECTION_SCHEMA = pa.schema([pa.field("key", pa.string(), nullable=False)])
DROPS_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("rule", pa.string(), nullable=False),  # its place in the config
        # of duplicates: the key that stayed at that rule; NAME/KEY in another DATASET
        pa.field("kept_instead", pa.string()),
    ]
)


def selection_path(root: P, name: str) -> P:
    """The sorted keys of a selection."""
    return below(root, FOLDER, f"{name}.parquet")


def drops_path(root: P, name: str) -> P:
    """The rows that a selection leaves out; none for a part of another selection."""
    return below(root, FOLDER, f"{name}.drops.parquet")


def record_path(root: P, name: str) -> P:
    """The selection's record, written last: its presence means the selection is whole."""
    return below(root, FOLDER, f"{name}.json")


def check_selection_name(name: str) -> None:
    """Raises UserError when a selection cannot be called `name`."""
    plain = name.replace("-", "").replace("_", "")
    if not (plain.isascii() and plain.isalnum() and len(name) <= 100):
        raise UserError(f"name: got {name!r}, expected at most 100 letters, digits, - and _")


@dataclass(frozen=True)
class DatasetIdentity:
    """Which DATASET a selection is of."""

    plan_fingerprint: str
    tars_sha256: str  # of the tars' SHA-256 in the order of the shards
    clip: Mapping[str, Any] | None


def identify(info: DatasetInfo, commits: Sequence[Commit]) -> DatasetIdentity:
    """The identity of a finished DATASET."""
    digest = hashlib.sha256()
    for commit in commits:
        tar = commit.files.get(f"shards/{shard_name(commit.shard)}.tar")
        digest.update((tar.sha256 if tar else "none").encode() + b"\n")
    clip = None if info.clip is None else asdict(info.clip)
    return DatasetIdentity(info.plan_fingerprint, digest.hexdigest(), clip)


@dataclass(frozen=True)
class RuleCount:
    """A rule as it was applied; rules are recorded in the order of their application."""

    rule: str
    settings: Any
    dropped: int


@dataclass(frozen=True)
class SelectionInfo:
    """selections/NAME.json. input = kept + what the rules dropped."""

    version: int
    name: str
    part_of: str | None  # of a train or val part: the selection that was split
    dataset: DatasetIdentity
    config: Mapping[str, Any]
    input: int
    rules: tuple[RuleCount, ...]
    kept: int
    split: Mapping[str, Any] | None  # parts by name, and the groups that were kept together
    files: Mapping[str, FileRecord]
    together: Mapping[str, str] = field(default_factory=dict)  # DATASETs judged as one, by name

    def to_json(self) -> dict[str, Any]:
        """Plain data for the record, with what tells whether it was changed."""
        data = asdict(self)
        if not self.together:  # as for most: the DATASET was judged by itself
            del data["together"]
        return {**data, "fingerprint": fingerprint(data)}


def read_selection(root: Place, name: str) -> SelectionInfo:
    """The record of a selection of the DATASET `root`.

    Raises:
        UserError: there is none of that name, or it is of another DATASET.
    """
    check_selection_name(name)
    info = read_dataset(root)
    path = record_path(root, name)
    if not path.is_file():
        there = sorted(p.stem for p in children(below(root, FOLDER)) if p.suffix == ".json")
        raise UserError(
            f"selection: got {name!r}, expected one of {root}: {', '.join(there) or 'it has none'}"
        )
    record = selection_from_json(read_json(path), path)
    if record.dataset.plan_fingerprint != info.plan_fingerprint:
        raise UserError(f"{path}: is a selection of another DATASET; run `unclip data curate`")
    return record


def selection_from_json(data: Any, path: Place) -> SelectionInfo:
    """A record from plain data.

    Raises:
        UserError: it is of another version, changed by hand, or none.
    """
    if not isinstance(data, dict) or data.get("version") != SELECTION_VERSION:
        found = data.get("version") if isinstance(data, dict) else data
        raise UserError(f"{path}: version: got {found!r}, expected {SELECTION_VERSION}")
    if data.get("fingerprint") != fingerprint({k: data[k] for k in data if k != "fingerprint"}):
        raise UserError(f"{path}: was changed after it was written")
    try:
        fields = {
            **{key: value for key, value in data.items() if key != "fingerprint"},
            "dataset": DatasetIdentity(**data["dataset"]),
            "rules": tuple(RuleCount(**rule) for rule in data["rules"]),
            "files": {name: FileRecord(**record) for name, record in data["files"].items()},
        }
        return SelectionInfo(**fields)
    except (TypeError, KeyError, AttributeError) as error:
        told = one_line(error)
        raise UserError(f"{path}: not a selection's record ({told})") from error


def selected_keys(root: Place, name: str) -> npt.NDArray[np.int64]:
    """The keys of a selection as numbers, ascending, [n]; eight bytes a row.

    Raises:
        UserError: there is no such selection, or its file cannot be read.
    """
    record = read_selection(root, name)
    path = selection_path(root, name)
    try:
        with path.open("rb") as opened:
            file = pq.ParquetFile(opened)
            parts = [keys_of(batch.column(0)) for batch in file.iter_batches(columns=["key"])]
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    keys = np.concatenate([np.empty(0, np.int64), *parts])
    if len(keys) != record.kept:
        raise UserError(f"{path}: has {len(keys)} keys, its record says {record.kept}")
    return keys


def keys_of(column: pa.Array) -> npt.NDArray[np.int64]:
    """Nine-digit keys as numbers; ArrowInvalid when one is none."""
    return np.asarray(column.cast(pa.int64()).to_numpy(zero_copy_only=False), np.int64)
