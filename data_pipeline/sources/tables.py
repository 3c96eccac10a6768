"""Tables of captions with paths or picture bytes: parquet, csv, tsv, json lines."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import pyarrow as pa

from base.errors import UserError, one_line
from base.files import sha256_file
from base.places import Place, beside, place
from base.store_errors import StoreRefused
from base.stores import StorePath
from data_pipeline import columns
from data_pipeline.config import ColumnsConfig
from data_pipeline.parquet import open_parquet, read_table
from data_pipeline.row import Rejection, Row
from data_pipeline.schema.dataset import REASONS
from data_pipeline.sources import img2dataset, texts
from data_pipeline.sources.files import read_file, store_tag
from data_pipeline.sources.roles import (
    BY_NAME,
    Roles,
    expected_hashes,
    find_roles,
    other_columns,
    text_names,
)
from data_pipeline.sources.source import (
    Source,
    ahead,
    clean_captions,
    parse_sidecar,
    table_rows,
    take_captions,
    without_captions,
    write_listing,
)

SUFFIXES = (".parquet", *texts.SUFFIXES)
_AT_ONCE, _BYTES_AT_ONCE = 64, 32 << 20  # rows of a table that are held together


def load_table(path: Place, named: ColumnsConfig = BY_NAME) -> pa.Table:
    """A small table of captions as a whole; captions and paths are always text.

    Raises:
        UserError: the file cannot be read as what its name says.
    """
    if path.suffix.lower() != ".parquet":
        used = partial(_used, str(path), named, False)
        schema, rows = texts.blocks(path, *text_names(named), used)
        return pa.Table.from_batches(rows, schema)
    try:
        return read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise texts.cannot_be_read(path, error) from error


def scan(path: Place, name: str, listing: Place, named: ColumnsConfig = BY_NAME) -> Source:
    """Looks at one table; csv, tsv and json lines are turned into parquet at `listing`.

    Raises:
        UserError: it cannot be read, or lacks a column for captions or pictures.
    """
    if path.suffix.lower() == ".parquet":
        table, print_ = str(path.absolute()), parquet_fingerprint(path)
    else:
        used = partial(_used, str(path), named, True)
        table = write_listing(listing, *texts.blocks(path, *text_names(named), used))
        print_ = sha256_file(path)
    try:
        with open_parquet(table) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # names, in the last case
        raise texts.cannot_be_read(path, error) from error
    roles = find_roles(schema, str(path), named=named)
    extra = other_columns(schema, roles)
    if roles.sidecar:
        extra = columns.union([extra, columns.infer(_sidecars(table, rows, roles.sidecar))])
    return Source("table", name, str(path.absolute()), rows, print_, table, extra, columns=named)


def _used(where: str, named: ColumnsConfig, picture: bool, schema: pa.Schema) -> texts.Used:
    roles = find_roles(schema, where, picture, named)
    others = (roles.path, roles.url)
    return texts.Used(roles.captions, [name for name in others if name])


def parquet_fingerprint(path: Place) -> str:
    """Hash of size and footer: the footer holds every chunk's place, size and statistics.

    Of an object in a store its tag as well, which changes with every byte.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 8))
            length = int.from_bytes(file.read(4), "little")
            file.seek(max(0, size - 8 - length))
            footer = file.read()
        return hashlib.sha256(f"{size} {store_tag(path)}".encode() + footer).hexdigest()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


def _sidecars(table: str, rows: int, column: str) -> Iterator[dict[str, Any]]:
    """What the objects in a column of JSON become columns of; a row that has none will say so."""
    for batch in table_rows(table, 0, rows, [column]):
        for value in values(batch, column):
            try:
                yield without_captions(parse_sidecar(value or "{}", column))
            except Rejection:
                continue


def values(batch: pa.RecordBatch, name: str) -> list[Any]:
    """A column as Python values; text that is not UTF-8 comes as bytes."""
    return as_values(batch.column(name))


def as_values(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """Python values, also where some of them are none: bytes for text, text for times."""
    try:
        found: list[Any] = column.to_pylist()
    except (ValueError, OverflowError):
        found = [_as_value(item) for item in column]
    return found


def _as_value(item: pa.Scalar) -> Any:
    try:
        return item.as_py()
    except (ValueError, OverflowError):
        if isinstance(item, pa.DictionaryScalar):
            return _as_value(item.value)
        if isinstance(item, pa.StructScalar):
            return {name: _as_value(value) for name, value in item.items()}
        if isinstance(item, pa.ListScalar):
            return [_as_value(value) for value in item.values]
        if isinstance(item, pa.StringScalar):
            return item.as_buffer().to_pybytes()
        return str(item.cast(pa.int64(), safe=False).as_py())  # a time that no calendar has


def read(source: Source, first: int, count: int, max_bytes: int) -> Iterator[Row]:
    """Rows of a table, in order; those of a damaged part say so."""
    with open_parquet(source.table) as file:
        schema = file.schema_arrow
        parts = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
        groups = [part.num_rows for part in parts]
        heaviest = max((part.total_byte_size // max(1, part.num_rows) for part in parts), default=0)
    at_once = max(1, min(_AT_ONCE, _BYTES_AT_ONCE // max(1, heaviest)))
    roles = find_roles(schema, source.name, named=source.columns)
    make = partial(_numbered_row, source, roles)
    position, spans = first, [first + count]  # the ends of what is read in one go
    while spans:
        why = "fewer rows than its footer says"
        try:
            for batch in table_rows(source.table, position, spans[0] - position, batch=at_once):
                lists = {name: values(batch, name) for name in schema.names}
                rows = [
                    {n: column[i] for n, column in lists.items()} for i in range(batch.num_rows)
                ]
                in_store = _in_store(source, lists.get(roles.path or ""))
                for row in ahead(make, list(enumerate(rows, position)), max_bytes, in_store):
                    yield row
                    position += 1
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk, not the file
            why = one_line(error)
            ends = [end for end in itertools.accumulate(groups) if position < end < spans[-1]]
            if len(spans) == 1 and ends:  # what is whole of it, by row groups
                spans = [*ends, spans[-1]]
                continue
        while position < spans[0]:
            yield Row(str(position), problem=Rejection("broken_source", f"damaged table: {why}"))
            position += 1
        spans.pop(0)


def _in_store(source: Source, paths: list[Any] | None) -> bool:
    """Whether some of the pictures that the paths name lie in a store."""
    if paths is None or isinstance(place(source.path), StorePath):
        return paths is not None
    return any(isinstance(path, str) and "://" in path for path in paths)


def _numbered_row(
    source: Source, roles: Roles, numbered: tuple[int, dict[str, Any]], max_bytes: int
) -> Row:
    position, row = numbered
    return _row(source, roles, row, position, max_bytes)


def _row(source: Source, roles: Roles, row: dict[str, Any], position: int, max_bytes: int) -> Row:
    names = (roles.key, roles.path) if source.columns.key else (roles.path, roles.key)
    key = next((row[n] for n in names if n and row[n] is not None), position)
    key = key.decode("utf-8", "replace") if isinstance(key, bytes) else str(key)
    url = row[roles.url] if roles.url else None
    url = url.decode("utf-8", "replace") if isinstance(url, bytes) else url
    try:
        if row.get(texts.BAD):
            raise _told(row[texts.BAD])
        extra = {name: row[name] for name in row if name not in roles.consumed}
        captions = [item for name in roles.captions for item in listed(row[name])]
        if roles.sidecar and row[roles.sidecar]:
            sidecar = parse_sidecar(row[roles.sidecar], roles.sidecar)
            captions += take_captions(sidecar)
            url = sidecar.pop("url", None) if url is None else url
            extra |= sidecar
        found = clean_captions(captions)
        if not (roles.path or roles.image):
            if not url:
                raise Rejection("no_image", "the row has no address")
            return Row(key, None, found, url, extra, expected=expected_hashes(roles, row))
        return Row(key, _picture(source, roles, row, max_bytes), found, url, extra)
    except Rejection as problem:
        return Row(key, url=url, problem=problem)


def _told(bad: str) -> Rejection:
    reason, _, message = bad.partition(": ")
    return Rejection(reason, message) if reason in REASONS else Rejection("bad_row", bad)


def listed(value: Any) -> list[Any]:
    """A caption column's value as a list."""
    return value if isinstance(value, list) else [value]


def _picture(source: Source, roles: Roles, row: dict[str, Any], max_bytes: int) -> bytes:
    data = row[roles.image] if roles.image else None
    path = row[roles.path] if roles.path else None
    if isinstance(data, dict):
        path, data = data.get("path") or path, data.get("bytes")
    if data:
        if len(data) > max_bytes:
            raise Rejection("too_many_bytes", f"{len(data)} bytes, the cap is {max_bytes}")
        return bytes(data)
    if not isinstance(path, str) or not path or "\0" in path:
        told = img2dataset.why_not(row) or "the row names no picture"
        raise Rejection("no_image" if not path else "bad_path", told)
    if path.startswith(("http://", "https://")):
        hint = f"name its column: columns.url={roles.path}"
        raise Rejection("bad_path", f"{path}: an address, no path; {hint}")
    try:
        return read_file(beside(place(source.path), path), path, max_bytes)
    except ValueError as error:
        raise Rejection("bad_path", str(error)) from error
    except StoreRefused as error:
        if "://" not in path:  # the input's own bucket: a matter of the job, not of the row
            raise
        raise Rejection("unreadable_file", str(error)) from error
