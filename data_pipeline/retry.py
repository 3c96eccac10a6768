"""Another pass over the rows whose fault may have passed, into a DATASET beside the first."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from base.errors import NothingUsable, UserError
from base.files import atomic_path
from base.places import Place
from data_pipeline import columns, sources
from data_pipeline.config import PrepareConfig
from data_pipeline.parquet import read_table
from data_pipeline.pipeline import prepare_sources
from data_pipeline.plan import read_config, recorded_inputs, require_same_inputs
from data_pipeline.row import Row
from data_pipeline.schema.dataset import RETRYABLE, DatasetInfo, read_dataset, rejected_path
from data_pipeline.sources import Source, tables

_READ_ROWS = 1000  # read together where several of them are wanted
SOURCE_ROW = "source_row"  # of the first DATASET's input


def retry(
    dataset: Place,
    out: Place,
    clip: str = "none",
    config: PrepareConfig | None = None,
    *,
    ray_address: str | None = None,
) -> DatasetInfo:
    """Makes the DATASET `out` of the rows of `dataset` that were rejected for what may pass.

    The inputs must be where they were, unchanged. Goes on where an interrupted run ended.

    Raises:
        UserError: `dataset` is none or unfinished, or its inputs are gone or changed.
        NothingUsable: no row of it can be tried again.
    """
    info = read_dataset(dataset)
    wanted = _retryable(dataset, info.shards)
    if not wanted:
        raise NothingUsable(f"{dataset}: no row was rejected for a reason that may pass")
    config = config or read_config(dataset)

    def scan(work: Place) -> list[Source]:
        inputs = [item["name"] for item in recorded_inputs(dataset)]
        before = sources.scan(inputs, work, read_config(dataset).columns)
        require_same_inputs(dataset, before)
        listing = work / "retry.parquet"
        _write_listing(listing, before, wanted, config.max_bytes)
        return [tables.scan(listing, f"{dataset} (retry)", listing)]

    return prepare_sources(scan, out, clip, config, ray_address=ray_address)


def _retryable(dataset: Place, shards: int) -> list[int]:
    """Positions in the whole input, in order."""
    found: list[int] = []
    for shard in range(shards):
        path = rejected_path(dataset, shard)
        try:
            table = read_table(path, columns=["row", "reason"])
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
        found += table.filter(pc.is_in(table["reason"], pa.array(RETRYABLE)))["row"].to_pylist()
    return found


def _write_listing(
    path: Place, before: list[Source], wanted: list[int], max_bytes: int, rows_at_once: int = 1000
) -> None:
    """The wanted rows as a table of addresses, in row groups: never all of them in memory."""
    extra = columns.union([source.extra for source in before])
    own = [("url", pa.string()), ("captions", pa.list_(pa.string())), (SOURCE_ROW, pa.int64())]
    taken = {name for name, _ in own}
    others = [field for field in extra if field.name not in taken]
    if not any(field.name.lower() in tables.KEYS for field in others):
        own.append(("key", pa.string()))
    schema = pa.schema([*own, *others])
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        batch: list[dict[str, Any]] = []
        for position, row in _rows(before, wanted, max_bytes):
            batch.append(
                {
                    **row.extra,
                    "url": row.url,
                    "captions": list(row.captions),
                    SOURCE_ROW: position,
                    "key": row.extra.get("key", row.source_key),
                }
            )
            if len(batch) == rows_at_once:
                writer.write_table(_table(batch, schema))
                batch = []
        writer.write_table(_table(batch, schema))


def _table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    arrays = [columns.as_array([row.get(f.name) for row in rows], f.type) for f in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def _rows(before: list[Source], wanted: list[int], max_bytes: int) -> Iterator[tuple[int, Row]]:
    """The rows at the wanted positions of all sources laid end to end."""
    start = 0
    for source in before:
        inside = [position - start for position in wanted if 0 <= position - start < source.rows]
        for _, group in itertools.groupby(inside, lambda place: place // _READ_ROWS):
            places = list(group)
            first, count = places[0], places[-1] - places[0] + 1
            chosen = set(places)
            for place, row in enumerate(sources.read(source, first, count, max_bytes), first):
                if place in chosen:
                    yield start + place, row
        start += source.rows
