"""Checks of a DATASET's indexes against it and against their own records, for `verify`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from base.errors import UserError
from base.files import read_json, sha256_file
from base.places import Place, children, files_below
from data_pipeline.problems import Problems
from data_pipeline.schema.dataset import (
    ClipInfo,
    Commit,
    DatasetInfo,
    clip_from_json,
    clip_path,
    metadata_path,
)
from data_pipeline.search.embeddings import fingerprint_of
from data_pipeline.search.layout import (
    BACK_END_CACHE,
    BACK_END_FILE,
    INDEX,
    KINDS,
    METADATA,
    RECORD,
    back_end,
    damage,
    parse_record,
)

_FILES = {RECORD, BACK_END_FILE, BACK_END_CACHE, *(f"{kind}.index" for kind in KINDS)}


@dataclass(frozen=True)
class Indexed:
    """What an index must be of: a set of embeddings as it is now."""

    name: str | None  # of a further set
    clip: ClipInfo
    plan_fingerprint: str
    embeddings_fingerprint: str
    rows: int


def check_indexes(
    root: Place,
    info: DatasetInfo,
    commits: Mapping[str | None, Sequence[Commit]],
    problems: Problems,
) -> None:
    """The index of every set that has one, and that nothing else lies in their folder.

    `commits` are those of every set by its name, None for the shards themselves.
    """
    homes = {name: f"{INDEX}/embeddings/{name}" if name else INDEX for name in commits}
    for path in files_below(root / INDEX):
        parts = path.split("/")
        name = parts[1] if parts[0] == "embeddings" and len(parts) > 2 else None
        rest = parts if name is None else parts[2:]
        ours = (rest[0] in _FILES and len(rest) == 1) or (rest[0] == METADATA and len(rest) <= 2)
        if name not in homes or not ours:
            problems.add(f"{INDEX}/{path}", "does not belong to the DATASET")
    for name, home in homes.items():
        if all(item.name == "embeddings" for item in children(root / home)):
            continue
        clip = info.clip
        if name is not None:
            clip = clip_from_json(read_json(clip_path(root, name)))
        if clip is None:
            problems.add(home, "is an index of embeddings that are not there")
            continue
        print_ = fingerprint_of(commits[name], name)
        rows = sum(commit.kept for commit in commits[None])
        found = Problems()
        check_index(root, home, Indexed(name, clip, info.plan_fingerprint, print_, rows), found)
        _check_metadata(root, home, commits[None], found)
        option = f" --embeddings {name}" if name else ""
        again = f"; `unclip data index {root}{option}` makes it anew"
        problems.found += [line + again for line in found.found]


def check_index(root: Place, home: str, of: Indexed, problems: Problems) -> None:
    """One index, in the folder `home` of the DATASET: its record, its hashes, what it is of."""
    folder, where = root / home, f"{home}/{RECORD}"
    if not (folder / RECORD).is_file():
        problems.add(where, "is missing: the index is not whole")
        return
    try:
        record = parse_record(read_json(folder / RECORD), folder / RECORD)
    except UserError as error:
        problems.add(where, str(error).removeprefix(f"{folder / RECORD}: "))
        return
    _expect_written(folder, home, RECORD, record.to_json(), problems)
    problems.expect(where, "embeddings", record.embeddings, of.name)
    problems.expect(where, "rows", record.rows, of.rows)
    problems.expect(where, "kinds", sorted(record.kinds), sorted(KINDS))
    problems.expect(where, "files", sorted(record.files), [f"{kind}.index" for kind in KINDS])
    for field in ("plan_fingerprint", "clip", "embeddings_fingerprint"):
        if getattr(record, field) != getattr(of, field):
            problems.add(where, f"{field}: the index is of other embeddings")
            break
    for name, noted in record.files.items():
        problems.expect(where, f"rows of {name}", noted.rows, of.rows)
        cut = damage(folder, name, noted)
        if cut:
            problems.add(f"{home}/{name}", cut)
        elif sha256_file(folder / name) != noted.sha256:
            problems.add(f"{home}/{name}", f"is damaged: its SHA-256 is not the one of {RECORD}")
    _expect_written(folder, home, BACK_END_FILE, back_end(of.name), problems)


def _expect_written(folder: Place, home: str, name: str, value: object, problems: Problems) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    if not (folder / name).is_file():
        problems.add(f"{home}/{name}", "is missing")
    elif (folder / name).read_bytes() != text.encode():
        problems.add(f"{home}/{name}", "is not written as we write it: it was changed")


def _check_metadata(root: Place, home: str, own: Sequence[Commit], problems: Problems) -> None:
    """A link to the DATASET's, or, where the folder was copied, files of the same bytes."""
    place, where = root / home / METADATA, f"{home}/{METADATA}"
    if isinstance(place, Path) and place.is_symlink():
        if place.resolve() != Path(str(root), METADATA).resolve():
            problems.add(where, "links to another folder than the DATASET's metadata")
        return
    if not place.is_dir():
        if isinstance(place, Path):  # a store has no links
            problems.add(where, "is missing")
        return
    paths = [(metadata_path(Path(), c.shard), c) for c in own if c.kept]
    noted = {path.name: commit.files.get(str(path)) for path, commit in paths}
    for name in sorted({*noted, *files_below(place)}):
        record = noted.get(name)
        if record is None or not (place / name).is_file():
            problems.add(f"{where}/{name}", "is not as in the DATASET's metadata")
        elif sha256_file(place / name) != record.sha256:
            problems.add(f"{where}/{name}", "differs from the DATASET's metadata")
