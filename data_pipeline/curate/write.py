"""Files of a selection, written in pieces: the same rows give the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_pipeline.curate.duplicates import Places
from data_pipeline.curate.rules import LEFT, NOBODY, Verdict
from data_pipeline.curate.samples import Samples
from data_pipeline.schema.dataset import FileRecord
from data_pipeline.schema.selection import DROPS_SCHEMA, SELECTION_SCHEMA
from data_pipeline.shards import HashedFile

_ROWS = 1_000_000  # a row group
_DIGITS = 9


def write_selection(path: Path, samples: Samples, rows: Places) -> FileRecord:
    """The keys of rows, ascending."""
    return _write(path, SELECTION_SCHEMA, rows, lambda part: [key_text(samples.keys(part))])


def write_drops(path: Path, samples: Samples, verdict: Verdict) -> FileRecord:
    """The rows that were dropped, ascending, with rule and stand-in."""
    names = pa.array([name for name, _ in verdict.rules], pa.string())

    def columns(part: Places) -> list[pa.Array]:
        rules = names.take(pa.array(verdict.rule[part].astype(np.int64) - 1))
        if verdict.instead is None:
            return [key_text(samples.keys(part)), rules, pa.nulls(len(part), pa.string())]
        instead = verdict.instead[part]
        nobody = instead == NOBODY
        keys = samples.keys(np.where(nobody, 0, instead))
        return [key_text(samples.keys(part)), rules, key_text(keys, nobody)]

    return _write(path, DROPS_SCHEMA, np.flatnonzero(verdict.rule != LEFT), columns)


def key_text(keys: Places, nulls: npt.NDArray[np.bool_] | None = None) -> pa.Array:
    """Keys as their nine digits."""
    return pc.utf8_lpad(pc.cast(pa.array(keys, mask=nulls), pa.string()), _DIGITS, "0")


def _write(
    path: Path, schema: pa.Schema, rows: Places, columns: Callable[[Places], list[pa.Array]]
) -> FileRecord:
    with HashedFile(path) as file:
        sink = pa.PythonFile(file, mode="w")
        with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
            for part in _parts(rows):
                writer.write_table(pa.Table.from_arrays(columns(part), schema=schema), _ROWS)
    return file.record(len(rows))


def _parts(rows: Places) -> Iterator[Places]:
    for start in range(0, len(rows), _ROWS):
        yield rows[start : start + _ROWS]
