"""Parquet files wherever they are; of one in a store only the parts that are needed are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from base.places import Anywhere, place
from base.stores import StorePath


@contextmanager
def open_parquet(path: Anywhere) -> Iterator[pq.ParquetFile]:
    """The file, its footer read."""
    where = place(path)
    if isinstance(where, StorePath):
        with where.open() as opened, pq.ParquetFile(opened) as file:
            yield file
    else:
        with pq.ParquetFile(where) as file:
            yield file


def read_table(path: Anywhere, columns: Sequence[str] | None = None) -> pa.Table:
    """The whole table, or some of its columns."""
    where = place(path)
    if not isinstance(where, StorePath):
        return pq.read_table(where, columns=columns)
    with open_parquet(where) as file:
        return file.read(columns)


def read_schema(path: Anywhere) -> pa.Schema:
    """The columns, and what is noted beside them."""
    with open_parquet(path) as file:
        return file.schema_arrow
