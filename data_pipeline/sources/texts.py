"""Tables of text (csv, tsv, json lines; plain, .gz or .zst), read in blocks: never a whole file."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePath
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa

from base.errors import UserError, one_line
from base.places import Place
from data_pipeline import columns
from data_pipeline.row import utf8
from data_pipeline.sources import delimited
from data_pipeline.sources.packed import PACKED, CutShort, opened
from data_pipeline.sources.source import LISTING_ROWS

SUFFIXES = (".csv", ".tsv", ".jsonl")
# Of a block: what is wrong with a row, where that is known already; a word of REASONS and a colon
# may go before.
BAD = "__bad__"
_LONGEST_LINE = delimited.LONGEST_LINE
_TEXTS = pa.list_(pa.string())

Blocks = tuple[pa.Schema, Iterator[pa.RecordBatch]]


class Used(NamedTuple):
    """Columns that have a role."""

    captions: Sequence[str] = ()  # text, or lists of it
    texts: Sequence[str] = ()


FindUsed = Callable[[pa.Schema], Used]


def kind_of(path: Place) -> str:
    """The suffix that says what a file is, also when it is packed: .csv of a.csv.gz."""
    name = PurePath(path.name.lower())
    return name.with_suffix("").suffix if name.suffix in PACKED else name.suffix


def blocks(
    path: Place, text: set[str], captions: set[str], used: FindUsed = lambda schema: Used()
) -> Blocks:
    """A table's schema, and its rows in blocks; columns whose lower name is in `text` are text.

    Those in `captions` may be lists of it in json lines.
    Of json lines, values of another type in a column that `used` names spoil their row.

    Raises:
        UserError: the file cannot be read as what its name says.
    """
    try:
        with opened(path) as file:
            if not file.read(1):
                raise UserError(f"{path}: is empty")
        if kind_of(path) == ".jsonl":
            return _json_lines(path, text, captions, used)
        return _csv(path, text)
    except (pa.ArrowException, OSError, delimited.HeaderError) as error:
        raise cannot_be_read(path, error) from error


def cannot_be_read(path: Place, error: Exception) -> UserError:
    """One line for what a library says."""
    return UserError(f"{path}: cannot be read ({one_line(error)})")


def _csv(path: Place, text: set[str]) -> Blocks:
    delimiter = "\t" if kind_of(path) == ".tsv" else ","
    return delimited.blocks(lambda: opened(path), delimiter, text, BAD)


def _json_lines(path: Place, text: set[str], captions: set[str], used: FindUsed) -> Blocks:
    """Read twice: what types the values have is known at the end only."""
    objects = (value for value in _objects(path) if isinstance(value, dict))
    schema = _schema(objects, text, captions).append(pa.field(BAD, pa.string()))
    roles = used(schema)

    def rows() -> Iterator[pa.RecordBatch]:
        found = (_checked(item, roles) for item in _objects(path))
        while some := list(itertools.islice(found, LISTING_ROWS)):
            values = [item if isinstance(item, dict) else {BAD: item} for item in some]
            arrays = [_column([v.get(f.name) for v in values], f.type) for f in schema]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    return schema, rows()


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    if kind == _TEXTS:  # one text is a list of one
        values = [[value] if isinstance(value, str) else value for value in values]
    return columns.as_array(values, kind)


def _checked(item: dict[str, Any] | str, used: Used) -> dict[str, Any] | str:
    """The object, or what is wrong with a value that has a role."""
    if isinstance(item, str):
        return item
    for name in (*used.captions, *used.texts):
        value = item.get(name)
        texts = value if isinstance(value, list) and name in used.captions else [value]
        for text in texts:
            if not (text is None or isinstance(text, str)):
                return f"{name}: got {type(text).__name__}, expected text"
            if text and utf8(text) != text:
                reason = "bad_caption" if name in used.captions else "bad_row"
                return f"{reason}: {name}: lone surrogates, which UTF-8 cannot hold"
    return item


def _schema(objects: Iterator[dict[str, Any]], text: set[str], captions: set[str]) -> pa.Schema:
    """Types as `columns.infer` gives them, but lists of text stay lists.

    A column of a name in `text` in which there is text is text, whatever else it holds; one in
    `captions` that has lists of it too is lists.
    """
    lists: dict[str, bool] = {}
    kinds: dict[str, set[bool]] = {}  # whether some values are lists of text, or else text

    def seen() -> Iterator[dict[str, Any]]:
        for item in objects:
            for name, value in item.items():
                if value is not None:
                    is_list = _is_list_of_text(value)
                    lists[name] = lists.get(name, True) and is_list
                    if is_list or isinstance(value, str):
                        kinds.setdefault(name, set()).add(is_list)
            yield item

    def kind(field: pa.Field) -> pa.DataType:
        name = field.name.lower()
        if name in text and (found := kinds.get(field.name)):
            return (
                _TEXTS if found == {True} or (True in found and name in captions) else pa.string()
            )
        return _TEXTS if lists.get(field.name) else field.type

    schema = columns.infer(seen())
    return pa.schema([(field.name, kind(field)) for field in schema])


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _objects(path: Place) -> Iterator[dict[str, Any] | str]:
    """The object of each line, or what is wrong with it; blank lines are none."""
    with opened(path) as file:
        try:
            while line := file.readline(_LONGEST_LINE):
                if len(line) == _LONGEST_LINE and not line.endswith(b"\n"):
                    _pass_line(file)
                    yield f"a line of more than {_LONGEST_LINE >> 20} MiB"
                elif line.strip():
                    yield _object(line)
        except CutShort as error:
            yield f"broken_source: {one_line(error)}"


def _pass_line(file: BinaryIO) -> None:
    while (rest := file.readline(_LONGEST_LINE)) and not rest.endswith(b"\n"):
        pass


def _object(line: bytes) -> dict[str, Any] | str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"not JSON ({str(error)[:100]})"
    return value if isinstance(value, dict) else "expected a JSON object"
