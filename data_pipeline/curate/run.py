"""From DATASETs and a config to a selection of each: files first, their record last."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from base.config import fingerprint
from base.errors import NothingUsable, UserError
from base.files import read_json, write_json
from base.lease import Lease
from data_pipeline.attempts import work_folder
from data_pipeline.curate.config import CurateConfig
from data_pipeline.curate.duplicates import Places
from data_pipeline.curate.possible import require_possible
from data_pipeline.curate.rules import Split, Verdict, apply_rules, split_rows
from data_pipeline.curate.together import Together, open_together
from data_pipeline.curate.write import write_drops, write_selection
from data_pipeline.schema.dataset import FileRecord, read_dataset
from data_pipeline.schema.selection import (
    FOLDER,
    SELECTION_VERSION,
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
    return curate_together([dataset], name, config, replace=replace)[0]


def curate_together(
    datasets: Sequence[Path],
    name: str,
    config: CurateConfig | None = None,
    *,
    replace: bool = False,
) -> tuple[Curated, ...]:
    """`curate` of several DATASETs as if they were one: each gets its rows of the selection.

    Rows are compared in the order of the DATASETs; each must have a name of its own.
    """
    settings = config or CurateConfig()
    check_selection_name(name)
    for dataset in datasets:
        read_dataset(dataset)
    with ExitStack() as leases:
        for dataset in datasets:
            leases.enter_context(Lease(dataset))
        together = open_together(datasets)
        heads = _heads(together, name, settings)
        there = [
            _find(dataset, head, replace) for dataset, head in zip(datasets, heads, strict=True)
        ]
        found = [record for record in there if record is not None]
        if len(found) == len(datasets):
            return tuple(Curated(record, made=False) for record in found)
        verdict, split = _judge(together, settings)
        kept = verdict.left()
        return tuple(
            Curated(_write(together, place, head, verdict, kept, split), made=True)
            for place, head in enumerate(heads)
        )


def _heads(together: Together, name: str, config: CurateConfig) -> list[SelectionInfo]:
    """The records as far as they are known before the rules are applied."""
    identities = [identify(part.info, part.commits) for part in together.parts]
    judged = {
        other: fingerprint([identity.plan_fingerprint, identity.tars_sha256])
        for other, identity in zip(together.names, identities, strict=True)
    }
    return [
        SelectionInfo(
            version=SELECTION_VERSION,
            name=name,
            part_of=None,
            dataset=identity,
            config=config.to_json(),
            input=part.total,
            rules=(),
            kept=0,
            split=None,
            files={},
            together=judged if len(judged) > 1 else {},
        )
        for part, identity in zip(together.parts, identities, strict=True)
    ]


def _judge(together: Together, config: CurateConfig) -> tuple[Verdict, Split | None]:
    """What becomes of each row, and the two sides of what is kept.

    Raises:
        NothingUsable: nothing is.
    """
    rules = require_possible(together, config)
    verdict = apply_rules(together, config, rules)
    kept = verdict.left()
    if not len(kept):
        most = max(verdict.counts(), key=lambda count: count.dropped)
        raise NothingUsable(
            f"{', '.join(str(part.root) for part in together.parts)}: the rules leave none of "
            f"{together.total} rows; {most.rule} dropped {most.dropped}"
        )
    return verdict, split_rows(together, config, kept) if config.split else None


def part_name(name: str, part: str) -> str:
    """The selection that holds one side of a split."""
    return f"{name}-{part}"


def _find(root: Path, wanted: SelectionInfo, replace: bool) -> SelectionInfo | None:
    """The finished selection, if it is what is asked for; another one is refused, or replaced."""
    name = wanted.name
    for part in PARTS if wanted.config["split"] else ():
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
    differing = _differing(there, wanted)
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


def _differing(there: SelectionInfo, wanted: SelectionInfo) -> list[str]:
    """What the selection that is there was made of otherwise."""
    fields = [field for field in wanted.config if there.config.get(field) != wanted.config[field]]
    fields += [field for field in there.config if field not in wanted.config]
    old, new = there.dataset, wanted.dataset
    if (old.plan_fingerprint, old.tars_sha256) != (new.plan_fingerprint, new.tars_sha256):
        fields.append("DATASET")
    elif old.clip is not None and old.clip != new.clip:  # without one, no rule used it
        fields.append("CLIP")
    if list(there.together.values()) != list(wanted.together.values()):
        fields.append("choice or order of DATASETs")
    else:  # a key that stayed in another DATASET is recorded with its folder's name
        names = zip(there.together, wanted.together, strict=True)
        fields += [f"name of a DATASET ({new}, was {old})" for old, new in names if old != new]
    return fields


def _is_damaged(root: Path, there: SelectionInfo) -> bool:
    """Whether a file of the selection is gone or cut; it is made again then."""
    files = [(root / path, record.bytes) for path, record in there.files.items()]
    parts = (there.split or {}).get("parts", ())
    return not all(record_path(root, part).is_file() for part in parts) or any(
        not path.is_file() or path.stat().st_size != size for path, size in files
    )


def _write(
    together: Together,
    place: int,
    head: SelectionInfo,
    verdict: Verdict,
    kept: Places,
    split: Split | None,
) -> SelectionInfo:
    """Writes everything aside, takes away what was there, gives the names, records last."""
    root, name = together.parts[place].root, head.name
    within = together.within(place)
    with work_folder(root) as work:
        path = drops_path(root, name)
        files = {path: write_drops(work / path.name, together, place, verdict)}
        counts = {}
        for part in PARTS if split is not None else ():
            path = selection_path(root, part_name(name, part))
            files[path] = write_selection(work / path.name, together, place, getattr(split, part))
            counts[part_name(name, part)] = files[path].rows
        path = selection_path(root, name)
        files[path] = write_selection(work / path.name, together, place, kept)
        whole = dataclasses.replace(
            head,
            rules=verdict.counts(within),
            kept=files[path].rows,
            split=_split_record(counts, split),
            files=_relative(root, files),
        )
        _remove_records(root, name)
        (root / FOLDER).mkdir(exist_ok=True)
        for path in files:
            os.replace(work / path.name, path)
        for selection in (*_parts(whole), whole):  # each is written with an fsync of the folder
            write_json(record_path(root, selection.name), selection.to_json())
    return whole


def _split_record(counts: dict[str, int], split: Split | None) -> dict[str, Any] | None:
    if split is None:
        return None
    return {"parts": counts, "groups": split.groups, "largest_group": split.largest_group}


def _parts(whole: SelectionInfo) -> Iterator[SelectionInfo]:
    """The records of a split selection's sides."""
    for name, kept in (whole.split or {}).get("parts", {}).items():
        path = selection_path(Path(), name).as_posix()
        yield dataclasses.replace(
            whole,
            name=name,
            part_of=whole.name,
            input=whole.kept,
            rules=(RuleCount("split", whole.config["split"], whole.kept - kept),),
            kept=kept,
            split=None,
            files={path: whole.files[path]},
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
