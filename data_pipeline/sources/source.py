"""What planning learns about one input, enough for any worker to read any of its rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from base.ahead import map_ahead
from base.files import atomic_path
from base.places import Place
from data_pipeline.config import ColumnsConfig
from data_pipeline.parquet import open_parquet
from data_pipeline.row import Rejection, Row
from data_pipeline.schema.dataset import ClipInfo

Kind = Literal["pairs", "tar", "table", "embeddings", "retry", "broken"]
MAX_CAPTION_BYTES = 1 << 20
LISTING_ROWS = 1000  # rows of a listing's row group
READS = 16  # of objects in a store at once: each waits much longer than it works
_LARGE = 8 << 20  # bytes of a picture that is read alone

T = TypeVar("T")


@dataclass(frozen=True)
class Vectors:
    """What belongs to a file of image embeddings, whose path is the source's."""

    dim: int
    texts: str | None  # path of the captions' embeddings, where they were published
    clip: ClipInfo | None = None  # whose they are, as the user says


@dataclass(frozen=True)
class Source:
    """One input folder, tar, table or file of embeddings.

    `table` is the parquet file that workers read: the input itself, or a listing made for this run
    under .work. `fingerprint` depends on the content and not on the place.
    """

    kind: Kind
    name: str  # as the user gave it
    path: str  # absolute, or an address
    rows: int
    fingerprint: str
    table: str
    extra: pa.Schema = field(repr=False)  # the input's other columns
    notes: tuple[str, ...] = ()  # what the user should hear about
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)  # named by the user, of a table
    vectors: Vectors | None = None  # of embeddings
    problem: str = ""  # of a broken one: why it cannot be read


def table_rows(
    path: str, first: int, count: int, columns: list[str] | None = None, batch: int = 256
) -> Iterator[pa.RecordBatch]:
    """Rows first … first + count - 1 of a parquet file, reading only their row groups."""
    with open_parquet(path) as file:
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        groups, skip, seen = [], first, 0
        for group, size in enumerate(sizes):
            if seen + size > first and seen < first + count:
                groups.append(group)
                skip = min(skip, first - seen) if len(groups) == 1 else skip
            seen += size
        left = count
        for chunk in file.iter_batches(batch, row_groups=groups, columns=columns):
            taken = chunk.slice(skip, left)
            skip = max(0, skip - chunk.num_rows)
            left -= taken.num_rows
            if taken.num_rows:
                yield taken
            if left == 0:
                return


def write_listing(path: Place, schema: pa.Schema, rows: Iterable[pa.RecordBatch]) -> str:
    """Write a listing in small row groups; gives its path."""
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for batch in rows:
            writer.write_batch(batch, row_group_size=LISTING_ROWS)
    return str(path.absolute())


def ahead(
    make: Callable[[T, int], Row], items: Sequence[T], max_bytes: int, in_store: bool
) -> Iterator[Row]:
    """make(item, max_bytes) of each item, in order; out of a store several at once.

    Of those that are read at once none is large, so what is held in memory stays small.
    """
    if not in_store:
        for item in items:
            yield make(item, max_bytes)
        return
    small = min(max_bytes, _LARGE)
    found = map_ahead(lambda item: make(item, small), items, READS)
    for item, row in zip(items, found, strict=True):
        too_large = row.problem is not None and row.problem.reason == "too_many_bytes"
        yield make(item, max_bytes) if too_large and small < max_bytes else row


def clean_captions(values: Iterable[Any]) -> tuple[str, ...]:
    """Captions in order, each once, without blank ones.

    Raises:
        Rejection: one is not text that UTF-8 can hold, or is absurdly long.
    """
    found: dict[str, None] = {}
    for value in values:
        if value is None:
            continue
        text = as_text(value).strip()
        if text:
            found[text] = None
    return tuple(found)


def as_text(value: Any) -> str:
    """A caption's text from str or bytes; raises Rejection when it is none."""
    try:
        data = value.encode() if isinstance(value, str) else bytes(value)
        text = data.decode("utf-8-sig")
    except UnicodeError as error:
        raise Rejection("bad_caption", "the caption is not UTF-8 text") from error
    except TypeError as error:
        raise Rejection("bad_caption", f"the caption is a {type(value).__name__}") from error
    if len(data) > MAX_CAPTION_BYTES:
        raise Rejection("bad_caption", f"the caption has {len(data)} bytes")
    if "\0" in text:
        raise Rejection("bad_caption", "the caption holds NUL characters")
    return text


def parse_sidecar(data: str | bytes, where: str) -> dict[str, Any]:
    """A json beside a picture as an object; raises Rejection when it is none."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Rejection("bad_row", f"{where}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise Rejection("bad_row", f"{where}: expected a JSON object")
    return value


def take_captions(extra: dict[str, Any]) -> list[Any]:
    """Removes `caption` and `captions` from a sidecar's object and gives their values."""
    values: list[Any] = []
    for name in ("caption", "captions"):
        value = extra.get(name)
        if isinstance(value, str) or (
            isinstance(value, list) and all(isinstance(item, str) for item in value)
        ):
            del extra[name]
            values += [value] if isinstance(value, str) else value
    return values


def without_captions(extra: Mapping[str, Any]) -> dict[str, Any]:
    """The object's keys that become columns."""
    rest = dict(extra)
    take_captions(rest)
    rest.pop("url", None)
    return rest
