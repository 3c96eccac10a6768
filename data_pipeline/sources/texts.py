"""Tables of text (csv, tsv, json lines; plain, .gz or .zst), read in blocks: never a whole file."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, BinaryIO

import pyarrow as pa

from base.errors import UserError
from base.places import Place
from base.stores import StorePath
from data_pipeline import columns
from data_pipeline.sources import delimited
from data_pipeline.sources.source import LISTING_ROWS

SUFFIXES = (".csv", ".tsv", ".jsonl")
PACKED = {".gz": "gzip", ".zst": "zstd"}
BAD = "__bad__"  # of a block: what is wrong with a row's line, where that is known already
_LONGEST_LINE = delimited.LONGEST_LINE

Blocks = tuple[pa.Schema, Iterator[pa.RecordBatch]]


def kind_of(path: Place) -> str:
    """The suffix that says what a file is, also when it is packed: .csv of a.csv.gz."""
    name = PurePath(path.name)
    return name.with_suffix("").suffix if name.suffix in PACKED else name.suffix


def blocks(path: Place, text: set[str]) -> Blocks:
    """A table's schema, and its rows in blocks; columns whose lower name is in `text` are text.

    Raises:
        UserError: the file cannot be read as what its name says.
    """
    try:
        with _opened(path) as file:
            if not file.read(1):
                raise UserError(f"{path}: is empty")
        return _json_lines(path) if kind_of(path) == ".jsonl" else _csv(path, text)
    except (pa.ArrowException, OSError, delimited.HeaderError) as error:
        raise cannot_be_read(path, error) from error


def cannot_be_read(path: Place, error: Exception) -> UserError:
    """One line for what a library says."""
    return UserError(f"{path}: cannot be read ({' '.join(str(error).split())})")


def _csv(path: Place, text: set[str]) -> Blocks:
    delimiter = "\t" if kind_of(path) == ".tsv" else ","
    return delimited.blocks(lambda: _opened(path), delimiter, text, BAD)


def _opened(path: Place) -> BinaryIO:
    """The file's bytes, unpacked."""
    if isinstance(path, StorePath):
        packed = PACKED.get(path.suffix)
        return io.BufferedReader(pa.input_stream(path.open(), compression=packed))
    return io.BufferedReader(pa.input_stream(str(path), compression="detect"))


def _json_lines(path: Place) -> Blocks:
    """Read twice: what types the values have is known at the end only."""
    objects = (value for value in _objects(path) if isinstance(value, dict))
    schema = _schema(objects).append(pa.field(BAD, pa.string()))

    def rows() -> Iterator[pa.RecordBatch]:
        found = _objects(path)
        while some := list(itertools.islice(found, LISTING_ROWS)):
            values = [item if isinstance(item, dict) else {BAD: item} for item in some]
            arrays = [columns.as_array([v.get(f.name) for v in values], f.type) for f in schema]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    return schema, rows()


def _schema(objects: Iterator[dict[str, Any]]) -> pa.Schema:
    """Types as `columns.infer` gives them, but lists of text stay lists."""
    lists: dict[str, bool] = {}

    def seen() -> Iterator[dict[str, Any]]:
        for item in objects:
            for name, value in item.items():
                if value is not None:
                    lists[name] = lists.get(name, True) and _is_list_of_text(value)
            yield item

    schema = columns.infer(seen())
    return pa.schema(
        [(f.name, pa.list_(pa.string()) if lists.get(f.name) else f.type) for f in schema]
    )


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _objects(path: Place) -> Iterator[dict[str, Any] | str]:
    """The object of each line, or what is wrong with it; blank lines are none."""
    with _opened(path) as file:
        while line := file.readline(_LONGEST_LINE):
            too_long = len(line) == _LONGEST_LINE and not line.endswith(b"\n")
            if too_long:
                while (rest := file.readline(_LONGEST_LINE)) and not rest.endswith(b"\n"):
                    pass
                yield f"a line of more than {_LONGEST_LINE >> 20} MiB"
            elif line.strip():
                yield _object(line)


def _object(line: bytes) -> dict[str, Any] | str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"not JSON ({str(error)[:100]})"
    return value if isinstance(value, dict) else "expected a JSON object"
