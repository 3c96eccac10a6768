"""Inputs of every kind, seen as numbered rows that any worker can read from the middle."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

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
    unless these are img2dataset's records of the pairs. A folder's file that cannot be read is one
    rejected row, as long as another one can.

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
        path = place(given)
        with impatient():
            there = path.exists()
        if not there:
            raise UserError(f"{shown(str(given))}: no such file or folder")
        parts = [
            (
                found,
                str(given) if found == path else str(found),
                work / "listings" / f"{next(numbers):05d}.parquet",
            )
            for found in _members(path)
        ]
        threads = _SCANS if isinstance(path, StorePath) else 1
        if len(parts) == 1:
            sources.append(scan_one(*parts[0]))
            continue
        found = list(map_ahead(lambda part: scan_part(*part), parts, threads))
        sources += broken.among(found, parts)
    if not sum(source.rows for source in sources):
        raise NothingUsable(f"{', '.join(map(str, inputs))}: no rows")
    return sources


def _members(path: Place) -> Sequence[Place]:
    if not path.is_dir() or any((path / name).is_file() for name in pairs.TABLES):
        return [path]
    inside = children(path)
    suffixes = {p.suffix for p in inside}
    if ".tar" not in suffixes and (vectors := embeddings.members(path)):
        return vectors
    if ".tfrecord" in suffixes:
        raise UserError(_TFRECORD.format(path))
    for suffix in (".tar", ".parquet", *texts.SUFFIXES):
        found = [p for p in inside if _is_a(p, suffix) and p.is_file()]
        if found:
            if (pair := pairs.first_pair(path)) is not None:
                if suffix in texts.SUFFIXES or _are_records(found):  # notes beside the pairs
                    return [path]
                raise UserError(
                    f"{path}: holds both {found[0].name} and pairs ({pair}); move one of them, or "
                    "name the files that are meant"
                )
            return found
    return [path]


def _are_records(found: Sequence[Place]) -> bool:
    return found[0].suffix == ".parquet" and img2dataset.are_records(found)


def _is_a(path: Place, suffix: str) -> bool:
    return (texts.kind_of(path) if suffix in texts.SUFFIXES else path.suffix) == suffix


def _scan_one(path: Place, name: str, listing: Place, named: ColumnsConfig) -> Source:
    if path.is_dir():
        return pairs.scan(path, name, listing, named)
    if path.suffix == ".parquet" or texts.kind_of(path) in texts.SUFFIXES:
        return tables.scan(path, name, listing, named)
    if path.suffix == ".tar":
        return tars.scan(path, name, listing)
    if path.suffix == embeddings.SUFFIX:
        return embeddings.scan(path, name, named)
    if path.suffix == ".tfrecord":
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
