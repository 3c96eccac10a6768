"""Delimited text (csv, tsv): a bad line spoils itself alone, and types hold for the whole file.

A record may run over several lines when a quote is open. Where that leads to no valid record the
quote was left open by mistake: then its first line alone is bad, and the next line begins anew.
"""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Callable, Iterator
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from base.errors import one_line
from data_pipeline.sources.packed import CutShort

Record = list[str] | str  # its fields, or what is wrong with a line

LONGEST_LINE = 64 << 20  # characters
_LONGEST_RECORD = 16 << 20  # of one that runs over several lines
_BLOCK_ROWS = 1000
_BLOCK_CHARACTERS = 16 << 20
_OVERLONG = "\0overlong"
_MISSING = pa.array(pa.csv.ConvertOptions().null_values)  # in columns that are not text
_BOOLS = pa.array(["true", "false", "True", "False", "TRUE", "FALSE"])
_WHOLE = r"^-?(0|[1-9][0-9]{0,18})$"  # nothing that would be written otherwise: no 007, no +1
_NOT_A_FLOAT = r"^-?(0[0-9].*|[0-9]{16,})$"  # a name made of digits; as float64 it would change


class HeaderError(ValueError):
    """The first line does not name the columns."""


def blocks(
    opened: Callable[[], BinaryIO], delimiter: str, text: set[str], bad: str
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """The table's schema and its rows in blocks; a bad line is a row with what is wrong in `bad`.

    The file is read twice: which types hold for all values is known at its end only. Columns whose
    lower name is in `text` are text.

    Raises:
        HeaderError: the first line is no header.
        OSError: the file cannot be read or unpacked.
    """
    with opened() as file:
        names, records = _table(file, delimiter)
        kinds = [pa.string() if name.lower() in text else None for name in names]
        for block in _cut(records):
            good = [record for record in block if isinstance(record, list)]
            for place, column in enumerate(zip(*good, strict=True)):
                if kinds[place] != pa.string():
                    kinds[place] = _widened(kinds[place], pa.array(column))
    fields = [(name, kind or pa.null()) for name, kind in zip(names, kinds, strict=True)]
    schema = pa.schema([*fields, (bad, pa.string())])

    def rows() -> Iterator[pa.RecordBatch]:
        with opened() as file:
            for block in _cut(_table(file, delimiter)[1]):
                yield _batch(block, schema)

    return schema, rows()


def _table(file: BinaryIO, delimiter: str) -> tuple[list[str], Iterator[Record]]:
    lines = _Lines(file)
    header: Record = ""
    while header == "" and (line := lines.take()):
        header = _record(line, lines, delimiter, None) if line.strip() else ""
    if isinstance(header, str):
        raise HeaderError(header or "no header")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise HeaderError(f"two columns are called {twice[0]!r}")
    return header, _records(lines, delimiter, len(header))


def _records(lines: _Lines, delimiter: str, columns: int) -> Iterator[Record]:
    while line := lines.take():
        if line.rstrip("\r\n"):
            yield _record(line, lines, delimiter, columns)
    if lines.damage:
        yield f"broken_source: {lines.damage}"


def _record(line: str, lines: _Lines, delimiter: str, columns: int | None) -> Record:
    """The record that begins with `line`; `columns` is how many it must have."""
    if line is _OVERLONG:
        return f"a line of more than {LONGEST_LINE >> 20} MiB"
    if '"' not in line:
        return _checked(line.rstrip("\r\n").split(delimiter), columns)
    further: list[str] = []
    try:
        fields = next(
            csv.reader(_following(line, lines, further), delimiter=delimiter, strict=True)
        )
        found = _checked(fields, columns)
        if isinstance(found, list) or not further:
            return found
    except csv.Error:
        pass
    lines.give_back(further)
    left_open = list[str]()
    alone = csv.reader(_following(line, None, left_open), delimiter=delimiter)
    try:
        fields = next(alone)
    except csv.Error as error:
        return str(error)
    return "a quote is left open" if left_open else _checked(fields, columns)


def _following(line: str, lines: _Lines | None, further: list[str]) -> Iterator[str]:
    """The line, and as many more as are asked for; those are noted in `further`."""
    yield line
    size = len(line)
    while (line := lines.take() if lines else "") and size <= _LONGEST_RECORD:
        further.append(line)
        size += len(line)
        yield line
    further += [line] if line or lines is None else []


def _checked(fields: list[str], columns: int | None) -> Record:
    if columns is not None and len(fields) != columns:
        return f"{len(fields)} columns, expected {columns}"
    for field in fields:
        try:
            field.isascii() or field.encode()
        except UnicodeEncodeError:
            return "bytes that are not UTF-8"
        if "\0" in field:
            return "NUL characters"
    return fields


class _Lines:
    """A file's lines; those that were read too far ahead can be given back."""

    def __init__(self, file: BinaryIO) -> None:
        csv.field_size_limit(LONGEST_LINE)
        self._text = io.TextIOWrapper(
            file, encoding="utf-8-sig", errors="surrogateescape", newline=""
        )
        self._back: deque[str] = deque()
        self.damage = ""  # why the file ends where it does not end

    def take(self) -> str:
        """The next line with its end; empty at the end of the file, or where it is damaged."""
        if self._back:
            return self._back.popleft()
        try:
            return self._read()
        except CutShort as error:
            self.damage = one_line(error)
            return ""

    def _read(self) -> str:
        line = self._text.readline(LONGEST_LINE)
        if len(line) < LONGEST_LINE or line.endswith(("\r", "\n")):
            return line
        while (rest := self._text.readline(LONGEST_LINE)) and not rest.endswith(("\r", "\n")):
            pass
        return _OVERLONG

    def give_back(self, lines: list[str]) -> None:
        """They come again."""
        self._back.extendleft(reversed(lines))


def _cut(records: Iterator[Record]) -> Iterator[list[Record]]:
    block: list[Record] = []
    size = 0
    for record in records:
        block.append(record)
        size += sum(map(len, record))
        if len(block) == _BLOCK_ROWS or size > _BLOCK_CHARACTERS:
            yield block
            block, size = [], 0
    if block:
        yield block


def _widened(known: pa.DataType | None, column: pa.Array) -> pa.DataType | None:
    """The type that holds what was `known` to be there and the column's values; None: nothing."""
    values = column.filter(pc.invert(pc.is_in(column, _MISSING)))
    if not len(values):
        return known
    order = [pa.bool_(), pa.int64(), pa.float64()] if known is None else [known]
    order += [pa.float64()] if known == pa.int64() else []
    return next((kind for kind in order if _holds(values, kind)), pa.string())


def _holds(values: pa.Array, kind: pa.DataType) -> bool:
    if kind == pa.bool_():
        return bool(pc.all(pc.is_in(values, _BOOLS)).as_py())
    if kind == pa.int64() and not pc.all(pc.match_substring_regex(values, _WHOLE)).as_py():
        return False
    if kind == pa.float64() and pc.any(pc.match_substring_regex(values, _NOT_A_FLOAT)).as_py():
        return False
    try:
        values.cast(kind)
    except pa.ArrowInvalid:
        return False
    return True


def _batch(block: list[Record], schema: pa.Schema) -> pa.RecordBatch:
    *fields, bad = schema
    nothing = [None] * len(fields)
    rows = [record if isinstance(record, list) else nothing for record in block]
    arrays = [
        _typed(pa.array(column, pa.string()), field.type)
        for column, field in zip(zip(*rows, strict=True), fields, strict=True)
    ]
    told = [record if isinstance(record, str) else None for record in block]
    return pa.RecordBatch.from_arrays([*arrays, pa.array(told, bad.type)], schema=schema)


def _typed(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if kind == pa.string():
        return column
    values = pc.if_else(pc.is_in(column, _MISSING), pa.scalar(None, pa.string()), column)
    return pa.nulls(len(column)) if kind == pa.null() else values.cast(kind)
