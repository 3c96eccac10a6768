"""Tables of captions with paths or picture bytes: parquet, csv, tsv, json lines."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa

from base.errors import UserError
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
from data_pipeline.sources.source import (
    INFER_ROWS,
    Source,
    ahead,
    clean_captions,
    parse_sidecar,
    table_rows,
    take_captions,
    without_captions,
    write_listing,
)

_BY_NAME = ColumnsConfig()
SUFFIXES = (".parquet", *texts.SUFFIXES)
_CAPTION = (
    "top_caption",
    "all_captions",
    "caption",
    "captions",
    "text",
    "texts",
    "txt",
    "prompt",
    "title",
)
_TOGETHER = (("top_caption", "all_captions"), ("caption", "captions"))
_PATH = ("file", "path", "filename", "file_name", "filepath", "file_path", "image_path", "image")
_BYTES = ("jpg", "jpeg", "png", "webp", "image", "image_bytes", "bytes")
_URL = ("url", "image_url")
_HASHES = {"md5": 32, "sha256": 64}  # hex digits
_AT_ONCE, _BYTES_AT_ONCE = 64, 32 << 20  # rows of a table that are held together
KEYS = ("key", "__key__", "uid", "id", "sample_id")
_TEXT = {*_CAPTION, *_PATH, *_URL, *KEYS, *_HASHES}


@dataclass(frozen=True)
class Roles:
    """Which column holds what; None where no column does."""

    captions: tuple[str, ...]
    path: str | None
    image: str | None
    url: str | None
    key: str | None
    sidecar: str | None  # text that holds a JSON object with further columns
    hashes: Mapping[str, str]  # md5, sha256: the column with what is expected behind `url`

    @property
    def consumed(self) -> set[str]:
        """Columns that do not travel on under their own names."""
        names = {self.path, self.image, self.url, self.sidecar, *self.captions, texts.BAD}
        return {name for name in names if name}


def find_roles(
    schema: pa.Schema, where: str, picture: bool = True, named: ColumnsConfig = _BY_NAME
) -> Roles:
    """Recognises the columns by name, case ignored, and type; those that are `named` are taken.

    Raises:
        UserError: no caption column, or (with `picture`) none with a path, bytes or an address; a
            named column is missing or of the wrong type.
    """
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise UserError(f"{where}: two columns are called {twice[0]!r}")
    names = {name.lower(): name for name in reversed(schema.names)}

    def pick(candidates: tuple[str, ...], fits: Any) -> list[str]:
        known = [names[c] for c in candidates if c in names]
        return [name for name in known if fits(schema.field(name).type)]

    def first(candidates: tuple[str, ...], fits: Any) -> str | None:
        return next(iter(pick(candidates, fits)), None)

    def one(field: str, known: tuple[str, ...], fits: Any) -> str | None:
        given = getattr(named, field)
        return first(known, fits) if given is None else _named(schema, where, field, given, fits)

    captions = [_named(schema, where, "captions", n, _is_caption) for n in named.captions]
    roles = Roles(
        captions=tuple(captions or _one_caption_column(pick(_CAPTION, _is_caption))),
        path=one("path", _PATH, _is_text),
        image=one("image", _BYTES, _is_bytes),
        url=one("url", _URL, _is_text),
        key=one("key", KEYS, lambda kind: _is_text(kind) or pa.types.is_integer(kind)),
        sidecar=first(("json",), _is_text),
        hashes={name: column for name in _HASHES if (column := first((name,), _is_text))},
    )
    # Then that is where the picture is; but a folder's table says of its files where they are from.
    if picture and named.url and not (named.path or named.image):
        roles = replace(roles, path=None, image=None)
    have = _names(schema)
    if not roles.captions:
        if wrong := [names[known] for known in _CAPTION if known in names]:
            kind = schema.field(wrong[0]).type
            raise UserError(f"{where}: column {wrong[0]!r} is {kind}, expected text")
        raise UserError(f"{where}: no caption column (one of {', '.join(_CAPTION)}); it has {have}")
    if picture and not (roles.path or roles.image or roles.url):
        raise UserError(f"{where}: no column with an address, a path or bytes; it has {have}")
    return roles


def _named(schema: pa.Schema, where: str, field: str, name: str, fits: Any) -> str:
    if name not in schema.names or name == texts.BAD:
        raise UserError(f"columns.{field}: got {name!r}, {where} has {_names(schema)}")
    if not fits(schema.field(name).type):
        raise UserError(f"columns.{field}: {name!r} of {where} is {schema.field(name).type}")
    return name


def _names(schema: pa.Schema) -> str:
    """The columns that the user knows."""
    return ", ".join(name for name in schema.names if name != texts.BAD)


def _one_caption_column(found: list[str]) -> list[str]:
    """One and all captions belong together; other names are alternatives to them."""
    for pair in _TOGETHER:
        if paired := [name for name in found if name.lower() in pair]:
            return paired
    return found[:1]


def _is_caption(kind: pa.DataType) -> bool:
    """Text, lists of it, or its bytes."""
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return True
    return _is_text(kind) or _is_text_list(kind)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    known = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(is_one(kind) for is_one in known)


def _is_text_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _is_text(
        kind.value_type
    )


def _is_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):  # the form of Hugging Face: {bytes, path}
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_bytes(kind.field(index).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def load_table(path: Place, named: ColumnsConfig = _BY_NAME) -> pa.Table:
    """A small table of captions as a whole; captions and paths are always text.

    Raises:
        UserError: the file cannot be read as what its name says.
    """
    if path.suffix != ".parquet":
        used = partial(_used, str(path), named, False)
        schema, rows = texts.blocks(path, _TEXT, set(_CAPTION), used)
        return pa.Table.from_batches(rows, schema)
    try:
        return read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise texts.cannot_be_read(path, error) from error


def scan(path: Place, name: str, listing: Place, named: ColumnsConfig = _BY_NAME) -> Source:
    """Looks at one table; csv, tsv and json lines are turned into parquet at `listing`.

    Raises:
        UserError: it cannot be read, or lacks a column for captions or pictures.
    """
    if path.suffix == ".parquet":
        table, print_ = str(path.absolute()), parquet_fingerprint(path)
    else:
        used = partial(_used, str(path), named, True)
        table = write_listing(listing, *texts.blocks(path, _TEXT, set(_CAPTION), used))
        print_ = sha256_file(path)
    try:
        with open_parquet(table) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # names, in the last case
        raise texts.cannot_be_read(path, error) from error
    roles = find_roles(schema, str(path), named=named)
    extra = other_columns(schema, roles)
    if roles.sidecar:
        extra = columns.union([extra, _infer_sidecar(table, roles.sidecar)])
    return Source("table", name, str(path.absolute()), rows, print_, table, extra, columns=named)


def _used(where: str, named: ColumnsConfig, picture: bool, schema: pa.Schema) -> texts.Used:
    roles = find_roles(schema, where, picture, named)
    others = (roles.path, roles.url)
    return texts.Used(roles.captions, [name for name in others if name])


def other_columns(schema: pa.Schema, roles: Roles) -> pa.Schema:
    """The columns that have no role."""
    return pa.schema([field for field in schema if field.name not in roles.consumed])


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


def _infer_sidecar(table: str, column: str) -> pa.Schema:
    objects = []
    for batch in table_rows(table, 0, INFER_ROWS, [column]):
        for value in values(batch, column):
            try:
                objects.append(without_captions(parse_sidecar(value or "{}", column)))
            except Rejection:
                continue
    return columns.infer(objects)


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
            why = " ".join(str(error).split())
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


def expected_hashes(roles: Roles, row: Mapping[str, Any]) -> dict[str, str]:
    """md5 and sha256 of the picture, where the row has them."""
    found = {}
    for name, column in roles.hashes.items():
        value = row[column]
        if isinstance(value, str) and re.fullmatch(rf"[0-9a-fA-F]{{{_HASHES[name]}}}", value):
            found[name] = value.lower()
    return found


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
    try:
        return read_file(beside(place(source.path), path), path, max_bytes)
    except ValueError as error:
        raise Rejection("bad_path", str(error)) from error
    except StoreRefused as error:
        if "://" not in path:  # the input's own bucket: a matter of the job, not of the row
            raise
        raise Rejection("unreadable_file", str(error)) from error
