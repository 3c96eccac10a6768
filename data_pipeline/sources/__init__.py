"""Inputs of every kind, seen as numbered rows that any worker can read from the middle."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

from base.ahead import map_ahead
from base.errors import NothingUsable, UserError
from base.places import Anywhere, Place, children, place
from base.store_errors import StoreError, shown
from base.stores import StorePath, impatient
from data_pipeline.config import ColumnsConfig
from data_pipeline.row import Row
from data_pipeline.sources import broken, embeddings, img2dataset, pairs, tables, tars, texts
from data_pipeline.sources.source import Source

__all__ = ["Source", "read", "scan"]

_KINDS = (".tar", ".parquet", *texts.SUFFIXES)  # of files in a folder; the first is taken
_TOLD = 3  # files that a note names
_SCANS = 8  # of files in a store at once: mostly waiting
_TFRECORD = (
    "{}: tfrecords are not read; expected img2dataset's output_format webdataset, files or parquet"
)


def scan(
    inputs: Sequence[Anywhere], work: Place, named: ColumnsConfig | None = None
) -> list[Source]:
    """The inputs' sources in argument order; what must be listed is listed under `work`.

    A folder is one of pairs when it has a captions table; otherwise its tars, or else its image
    embeddings, or else its tables of one kind, are the sources in the order of their names;
    otherwise it is one of pairs. One that holds pairs as well as tars or parquet files is refused,
    unless these are img2dataset's records of the pairs, and so are tables of several kinds; a note
    tells of tables beside tars. A folder's file that cannot be read is one rejected row, as long
    as another one can.

    Raises:
        UserError: an input is missing or unreadable.
        NothingUsable: an input holds no rows at all.
    """
    numbers = itertools.count()
    sources: list[Source] = []

    def scan_one(found: Place, name: str, listing: Place) -> Source:
        try:
            return _scan_one(found, name, listing, named or ColumnsConfig())
        except OSError as error:
            raise UserError(f"{found}: {error.strerror or error}") from error

    def scan_part(found: Place, name: str, listing: Place) -> Source | UserError:
        """Of a folder's files: one that is damaged, or not what its name says, costs itself."""
        try:
            return scan_one(found, name, listing)
        except UserError as error:
            cause = error.__cause__
            disk = isinstance(error, StoreError) or (isinstance(cause, OSError) and cause.errno)
            if disk or found.suffix == embeddings.SUFFIX:
                raise  # not the file's content, or rows that have no other place
            return error

    for given in inputs:
        path = _existing(given)
        members, passed_over = _members(path)
        parts = [
            (
                found,
                str(given) if found == path else str(found),
                work / "listings" / f"{next(numbers):05d}.parquet",
            )
            for found in members
        ]
        threads = _SCANS if isinstance(path, StorePath) else 1
        if len(parts) == 1:
            sources.append(_with_note(scan_one(*parts[0]), path, passed_over))
            continue
        found = list(map_ahead(lambda part: scan_part(*part), parts, threads))
        first, *others = broken.among(found, parts)
        sources += [_with_note(first, path, passed_over), *others]
    if not sum(source.rows for source in sources):
        raise NothingUsable(f"{', '.join(map(str, inputs))}: no rows")
    return sources


def _existing(given: Anywhere) -> Place:
    path = place(given)
    with impatient():
        there = path.exists()
    if not there:
        raise UserError(f"{shown(str(given))}: no such file or folder")
    return path


def _members(path: Place) -> tuple[Sequence[Place], Sequence[Place]]:
    """The files or the folder to be read, and the tables and tars that are passed over."""
    if not path.is_dir() or any((path / name).is_file() for name in pairs.TABLES):
        return [path], []
    inside = children(path)
    kinds = {_kind(p) for p in inside}
    if ".tar" not in kinds and (vectors := embeddings.members(path)):
        return vectors, []
    if ".tfrecord" in kinds:
        raise UserError(_TFRECORD.format(path))
    by_kind = {
        kind: [p for p in inside if _kind(p) == kind and p.is_file()] for kind in kinds & {*_KINDS}
    }
    order = [kind for kind in _KINDS if by_kind.get(kind)]
    if not order:
        return [path], []
    first, found = order[0], by_kind[order[0]]
    if (pair := pairs.first_pair(path)) is not None:
        if first in texts.SUFFIXES or _are_records(found):  # notes beside the pairs
            return [path], []
        raise _holds_both(path, found[0], f"pairs ({pair})")
    others = [other for kind in order[1:] for other in by_kind[kind] if not _are_records([other])]
    if others and first != ".tar":
        raise _holds_both(path, found[0], others[0].name)
    return found, [*others, *(p for p in inside if texts.kind_of(p) == ".tar" and p not in found)]


def _holds_both(path: Place, one: Place, other: str) -> UserError:
    return UserError(
        f"{path}: holds both {one.name} and {other}; move one of them, or name the files that are "
        "meant"
    )


def _with_note(source: Source, path: Place, passed_over: Sequence[Place]) -> Source:
    """The source, telling what of its folder is not read."""
    if not passed_over:
        return source
    names = ", ".join(other.name for other in passed_over[:_TOLD])
    more = ", …" if len(passed_over) > _TOLD else ""
    note = f"{path}: passed over beside the tars: {names}{more} ({len(passed_over)})"
    return replace(source, notes=(*source.notes, note))


def _are_records(found: Sequence[Place]) -> bool:
    return _kind(found[0]) == ".parquet" and img2dataset.are_records(found)


def _kind(path: Place) -> str:
    """The suffix that says what a file is, in small letters; tables of text may be packed."""
    unpacked = texts.kind_of(path)
    return unpacked if unpacked in texts.SUFFIXES else path.suffix.lower()


def _scan_one(path: Place, name: str, listing: Place, named: ColumnsConfig) -> Source:
    if path.is_dir():
        return pairs.scan(path, name, listing, named)
    kind = _kind(path)
    if kind in (".parquet", *texts.SUFFIXES):
        return tables.scan(path, name, listing, named)
    if kind == ".tar":
        return tars.scan(path, name, listing)
    if kind == embeddings.SUFFIX:
        return embeddings.scan(path, name, named)
    if kind == ".tfrecord":
        raise UserError(_TFRECORD.format(name))
    raise UserError(f"{name}: expected a folder, a .tar, or a table ({', '.join(tables.SUFFIXES)})")


_READERS = {
    "pairs": pairs.read,
    "tar": tars.read,
    "table": tables.read,
    "embeddings": embeddings.read,
    "retry": tables.read,  # the listing of another pass
    "broken": broken.read,
}


def read(source: Source, first: int, count: int, max_bytes: int) -> Iterator[Row]:
    """Exactly `count` rows from row `first` on; a row's problem travels in the row."""
    return _READERS[source.kind](source, first, count, max_bytes)
