"""From a DATASET and a config to a selection: files first, their record last."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from base.errors import NothingUsable, UserError
from base.files import read_json, write_json
from base.lease import Lease
from data_pipeline.attempts import work_folder
from data_pipeline.curate.config import CurateConfig
from data_pipeline.curate.duplicates import Places
from data_pipeline.curate.rules import Split, Verdict, apply_rules, require_possible, split_rows
from data_pipeline.curate.samples import Samples, open_samples
from data_pipeline.curate.write import write_drops, write_selection
from data_pipeline.schema.dataset import FileRecord, read_dataset
from data_pipeline.schema.selection import (
    FOLDER,
    SELECTION_VERSION,
    DatasetIdentity,
    RuleCount,
    SelectionInfo,
    check_selection_name,
    drops_path,
    identify,
    record_path,
    selection_from_json,
    selection_path,
)

PARTS = ("train", "val")


@dataclass(frozen=True)
class Curated:
    """A selection, and whether this run made it."""

    selection: SelectionInfo
    made: bool


def curate(
    dataset: Path, name: str, config: CurateConfig | None = None, *, replace: bool = False
) -> Curated:
    """Writes the selection `name` of the rows that the rules keep.

    One that is there already with the same config and DATASET is left as it is. The bytes depend on
    DATASET and config alone.

    Raises:
        UserError: a mistake in the config; no finished DATASET; one in use; a selection of that
            name that was made otherwise (`replace` takes its place).
        NothingUsable: the rules leave no row.
    """
    settings = config or CurateConfig()
    check_selection_name(name)
    read_dataset(dataset)
    with Lease(dataset):
        samples = open_samples(dataset)
        identity = identify(samples.info, samples.commits)
        there = _find(dataset, name, settings, identity, replace)
        if there is not None:
            return Curated(there, made=False)
        rules = require_possible(samples, settings)
        verdict = apply_rules(samples, settings, rules)
        counts, kept = verdict.counts(), verdict.left()
        if not len(kept):
            most = max(counts, key=lambda count: count.dropped)
            raise NothingUsable(
                f"{dataset}: the rules leave none of {samples.total} rows; "
                f"{most.rule} dropped {most.dropped}"
            )
        split = split_rows(samples, settings, kept) if settings.split else None
        record = SelectionInfo(
            version=SELECTION_VERSION,
            name=name,
            part_of=None,
            dataset=identity,
            config=settings.to_json(),
            input=samples.total,
            rules=counts,
            kept=len(kept),
            split=_split_record(name, split),
            files={},
        )
        return Curated(_write(samples, record, verdict, kept, split), made=True)


def part_name(name: str, part: str) -> str:
    """The selection that holds one side of a split."""
    return f"{name}-{part}"


def _split_record(name: str, split: Split | None) -> dict[str, Any] | None:
    if split is None:
        return None
    rows = {part_name(name, part): len(getattr(split, part)) for part in PARTS}
    return {"parts": rows, "groups": split.groups, "largest_group": split.largest_group}


def _find(
    root: Path, name: str, config: CurateConfig, identity: DatasetIdentity, replace: bool
) -> SelectionInfo | None:
    """The finished selection, if it is what is asked for; another one is refused, or replaced."""
    for part in PARTS if config.split else ():
        _require_own_part(root, name, part_name(name, part))
    path = record_path(root, name)
    if not path.is_file():
        return None
    try:
        there = selection_from_json(read_json(path), path)
    except UserError as error:
        if replace:
            return None
        raise UserError(f"{error}; give --replace to make it again") from error
    if there.part_of is not None:
        raise UserError(
            f"name: got {name!r}, which is a part of the selection {there.part_of!r}; "
            "expected another name"
        )
    differing = _differing(there, config, identity)
    if not differing:
        return None if _is_damaged(root, there) else there
    if replace:
        return None
    raise UserError(
        f"{path}: is there, made with another {', '.join(differing)}; "
        "give another name (--as), or --replace"
    )


def _require_own_part(root: Path, name: str, part: str) -> None:
    path = record_path(root, part)
    if path.is_file() and (read_json(path) or {}).get("part_of") != name:
        raise UserError(
            f"split: {part!r} is a selection of its own already; give another name (--as)"
        )


def _differing(there: SelectionInfo, config: CurateConfig, identity: DatasetIdentity) -> list[str]:
    new = config.to_json()
    fields = [field for field in new if there.config.get(field) != new[field]]
    fields += [field for field in there.config if field not in new]
    old = there.dataset
    if (old.plan_fingerprint, old.tars_sha256) != (identity.plan_fingerprint, identity.tars_sha256):
        fields.append("DATASET")
    elif old.clip is not None and old.clip != identity.clip:  # without one, no rule used it
        fields.append("CLIP")
    return fields


def _is_damaged(root: Path, there: SelectionInfo) -> bool:
    """Whether a file of the selection is gone or cut; it is made again then."""
    files = [(root / path, record.bytes) for path, record in there.files.items()]
    parts = (there.split or {}).get("parts", ())
    return not all(record_path(root, part).is_file() for part in parts) or any(
        not path.is_file() or path.stat().st_size != size for path, size in files
    )


def _write(
    samples: Samples, record: SelectionInfo, verdict: Verdict, kept: Places, split: Split | None
) -> SelectionInfo:
    """Writes everything aside, takes away what was there, gives the names, records last."""
    root, name = samples.root, record.name
    with work_folder(root) as work:
        files = {
            drops_path(root, name): write_drops(work / f"{name}.drops.parquet", samples, verdict)
        }
        parts: list[SelectionInfo] = []
        for part in PARTS if split is not None else ():
            rows = getattr(split, part)
            path = selection_path(root, part_name(name, part))
            files[path] = write_selection(work / path.name, samples, rows)
            parts.append(_part(record, part, len(rows), _relative(root, {path: files[path]})))
        path = selection_path(root, name)
        files[path] = write_selection(work / path.name, samples, kept)
        whole = dataclasses.replace(record, files=_relative(root, files))
        _remove_records(root, name)
        (root / FOLDER).mkdir(exist_ok=True)
        for path in files:
            os.replace(work / path.name, path)
        for selection in (*parts, whole):  # each is written with an fsync of the folder
            write_json(record_path(root, selection.name), selection.to_json())
    return whole


def _part(
    whole: SelectionInfo, part: str, kept: int, files: dict[str, FileRecord]
) -> SelectionInfo:
    rule = RuleCount("split", whole.config["split"], whole.kept - kept)
    return SelectionInfo(
        version=whole.version,
        name=part_name(whole.name, part),
        part_of=whole.name,
        dataset=whole.dataset,
        config=whole.config,
        input=whole.kept,
        rules=(rule,),
        kept=kept,
        split=None,
        files=files,
    )


def _relative(root: Path, files: dict[Path, FileRecord]) -> dict[str, FileRecord]:
    return {path.relative_to(root).as_posix(): record for path, record in files.items()}


def _remove_records(root: Path, name: str) -> None:
    """Takes away a former selection of that name: its record first, then its parts."""
    record_path(root, name).unlink(missing_ok=True)
    for part in (part_name(name, part) for part in PARTS):
        path = record_path(root, part)
        if path.is_file() and (read_json(path) or {}).get("part_of") == name:
            path.unlink()
            selection_path(root, part).unlink(missing_ok=True)
