"""Files of a selection, written in pieces: the same rows give the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_pipeline.curate.duplicates import Places
from data_pipeline.curate.rules import LEFT, NOBODY, Verdict
from data_pipeline.curate.together import Together
from data_pipeline.schema.dataset import FileRecord
from data_pipeline.schema.selection import DROPS_SCHEMA, SELECTION_SCHEMA
from data_pipeline.shards import HashedFile

_ROWS = 1_000_000  # a row group
_DIGITS = 9


def write_selection(path: Path, together: Together, place: int, rows: Places) -> FileRecord:
    """The keys of those of the rows, ascending, that are of the DATASET at that place."""
    within, samples = together.within(place), together.parts[place]
    here = rows[slice(*np.searchsorted(rows, [within.start, within.stop]))] - within.start
    return _write(path, SELECTION_SCHEMA, here, lambda part: [key_text(samples.keys(part))])


def write_drops(path: Path, together: Together, place: int, verdict: Verdict) -> FileRecord:
    """The rows of one DATASET that were dropped, ascending, with rule and stand-in."""
    within, samples = together.within(place), together.parts[place]
    names = pa.array([name for name, _ in verdict.rules], pa.string())

    def columns(part: Places) -> list[pa.Array]:
        rows = part + within.start
        rules = names.take(pa.array(verdict.rule[rows].astype(np.int64) - 1))
        instead = pa.nulls(len(part), pa.string())
        if verdict.instead is not None:
            instead = _stand_ins(together, place, verdict.instead[rows])
        return [key_text(samples.keys(part)), rules, instead]

    return _write(path, DROPS_SCHEMA, np.flatnonzero(verdict.rule[within] != LEFT), columns)


def _stand_ins(together: Together, place: int, instead: Places) -> pa.Array:
    """Keys of rows, NAME/KEY for those of another DATASET; null for NOBODY."""
    nobody = instead == NOBODY
    whose = together.part_of(np.where(nobody, 0, instead))
    texts = pa.nulls(len(instead), pa.string())
    for other in np.unique(whose[~nobody]):
        here = ~nobody & (whose == other)
        keys = together.parts[other].keys(instead[here] - together.starts[other])
        text = key_text(keys)
        if other != place:
            text = pc.binary_join_element_wise(together.names[other], text, "/")
        texts = pc.replace_with_mask(texts, pa.array(here), text)
    return texts


def key_text(keys: Places) -> pa.Array:
    """Keys as their nine digits."""
    return pc.utf8_lpad(pc.cast(pa.array(keys), pa.string()), _DIGITS, "0")


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
