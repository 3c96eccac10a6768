"""Checks of a DATASET's selections against it and against their own records, for `verify`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from base.files import read_json, sha256_file
from data_pipeline.curate.samples import Samples
from data_pipeline.problems import Problems
from data_pipeline.schema.selection import (
    DROPS_SCHEMA,
    FOLDER,
    SELECTION_SCHEMA,
    DatasetIdentity,
    SelectionInfo,
    drops_path,
    identify,
    keys_of,
    record_path,
    selection_from_json,
    selection_path,
)

Mask = npt.NDArray[np.bool_]


def selection_names(root: Path) -> list[str]:
    """Names of the selections that have a record."""
    return sorted(path.stem for path in (root / FOLDER).glob("*.json"))


def check_selections(samples: Samples, problems: Problems) -> None:
    """Hashes, keys, order and sums of every selection, and that nothing else lies beside them."""
    root, known = samples.root, set[str]()
    records: dict[str, SelectionInfo] = {}
    identity = identify(samples.info, samples.commits)
    for name in selection_names(root):
        path = record_path(Path(), name)
        known.add(path.as_posix())
        record = selection_from_json(read_json(root / path), path)
        if (root / path).read_text() != json.dumps(
            record.to_json(), indent=2, ensure_ascii=False
        ) + "\n":
            problems.add(path, "is not written as we write it: it was changed")
        problems.expect(path, "name", record.name, name)
        _check_identity(path, record, identity, problems)
        known |= set(record.files)
        records[name] = record
    for path in sorted((root / FOLDER).rglob("*")):
        shown = path.relative_to(root).as_posix()
        if shown not in known:
            problems.add(shown, "does not belong to the DATASET")
    masks: dict[str, Mask | None] = {}
    for name, record in records.items():
        mask = _check_files(samples, record, problems)
        masks[name] = mask if record.part_of or record.split else None  # a byte a row each
        _check_sums(name, record, problems)
    for name in records:
        _check_parts(name, records, masks, problems)


def _check_identity(
    path: Path, record: SelectionInfo, identity: DatasetIdentity, problems: Problems
) -> None:
    for field in ("plan_fingerprint", "tars_sha256"):
        if getattr(record.dataset, field) != getattr(identity, field):
            problems.add(path, f"{field}: is a selection of another DATASET")
            return
    if record.dataset.clip is not None and record.dataset.clip != identity.clip:
        problems.add(path, "clip: the embeddings were of another CLIP when it was made")


def _check_sums(name: str, record: SelectionInfo, problems: Problems) -> None:
    dropped = sum(rule.dropped for rule in record.rules)
    problems.expect(
        record_path(Path(), name), "kept + dropped", record.kept + dropped, record.input
    )


def _check_files(samples: Samples, record: SelectionInfo, problems: Problems) -> Mask | None:
    """Which rows of the DATASET the selection keeps, [n]; None when its file is damaged."""
    root, path = samples.root, selection_path(Path(), record.name)
    for file, noted in record.files.items():
        if not (root / file).is_file():
            problems.add(file, "is missing")
            return None
        if sha256_file(root / file) != noted.sha256:
            problems.add(file, f"its SHA-256 is not the one of {record.name}.json")
            return None
    if path.as_posix() not in record.files:
        problems.add(record_path(Path(), record.name), f"files: lacks {path}")
        return None
    kept = _mask_of(samples, path, SELECTION_SCHEMA, problems)
    problems.expect(path, "rows", int(kept.sum()), record.kept)
    drops = drops_path(Path(), record.name)
    if record.part_of is not None:
        return kept
    problems.expect(record_path(Path(), record.name), "input", record.input, samples.total)
    if drops.as_posix() not in record.files:
        problems.add(record_path(Path(), record.name), f"files: lacks {drops}")
        return kept
    dropped = _mask_of(samples, drops, DROPS_SCHEMA, problems)
    if (kept == dropped).any():
        problems.add(drops, "a row is both kept and dropped, or neither")
    _check_drops(samples, record, drops, problems)
    return kept


def _mask_of(samples: Samples, path: Path, schema: pa.Schema, problems: Problems) -> Mask:
    """The rows whose keys a file holds, [n]."""
    mask = np.zeros(samples.total, np.bool_)
    file = pq.ParquetFile(samples.root / path)
    if not file.schema_arrow.equals(schema):
        problems.add(path, "has other columns than the contract")
        return mask
    last = -1
    for batch in file.iter_batches(columns=["key"]):
        keys = keys_of(batch.column(0))
        ascending = np.diff(keys, prepend=last) > 0
        if not ascending.all() or pc.any(pc.not_equal(pc.utf8_length(batch.column(0)), 9)).as_py():
            problems.add(path, "keys are not nine digits in ascending order")
            return mask
        rows = samples.rows(keys)
        if (rows < 0).any():
            problems.add(path, f"key {keys[rows < 0][0]:09d} is not in the DATASET")
            return mask
        mask[rows] = True
        last = int(keys[-1]) if len(keys) else last
    return mask


def _check_drops(samples: Samples, record: SelectionInfo, path: Path, problems: Problems) -> None:
    """Counts by rule, and that stand-ins exist."""
    counts = {rule.rule: 0 for rule in record.rules}
    file = pq.ParquetFile(samples.root / path)
    if not file.schema_arrow.equals(DROPS_SCHEMA):
        return
    for batch in file.iter_batches():
        for entry in batch.column("rule").value_counts().to_pylist():
            counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]
        instead = batch.column("kept_instead").drop_null()
        elsewhere = pc.match_substring(instead, "/")
        if (samples.rows(keys_of(instead.filter(pc.invert(elsewhere)))) < 0).any():
            problems.add(path, "kept_instead: a key that is not in the DATASET")
        for text in instead.filter(elsewhere).to_pylist():
            name, _, key = text.rpartition("/")
            if name not in record.together or not (len(key) == 9 and key.isdecimal()):
                problems.add(path, f"kept_instead: got {text!r}, expected KEY or NAME/KEY")
                break
    problems.expect(path, "drops by rule", counts, {r.rule: r.dropped for r in record.rules})


def _check_parts(
    name: str,
    records: dict[str, SelectionInfo],
    masks: dict[str, Mask | None],
    problems: Problems,
) -> None:
    """That a part belongs to a whole, and that a whole is the sum of its parts."""
    record, path = records[name], record_path(Path(), name)
    if record.part_of is not None and record.part_of not in records:
        problems.add(path, f"part_of: there is no selection {record.part_of!r}")
    for part in _parts(record):
        if part not in records or records[part].part_of != name:
            problems.add(path, f"split: there is no part {part!r}")
            return
    found = [mask for mask in (masks[part] for part in _parts(record)) if mask is not None]
    whole = masks[name]
    if whole is not None and found and len(found) == len(list(_parts(record))):
        together = np.sum(found, axis=0, dtype=np.int64)
        if not np.array_equal(together, whole.astype(np.int64)):
            problems.add(path, "split: the parts do not make up the whole")


def _parts(record: SelectionInfo) -> Iterator[str]:
    yield from (record.split or {}).get("parts", ())
