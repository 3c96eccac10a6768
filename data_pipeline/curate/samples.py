"""The kept rows of a finished DATASET, laid end to end, and their metadata read shard by shard."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from base.ahead import map_ahead
from base.errors import NothingUsable, UserError
from base.progress import Progress
from data_pipeline.schema.dataset import (
    KEYS_PER_SHARD,
    METADATA_SCHEMA,
    Commit,
    DatasetInfo,
    metadata_path,
    read_commit,
    read_dataset,
)

T = TypeVar("T")

_READ_AHEAD = 2  # shards a core that are read or wait to be taken
_SIDES = ("original_width", "original_height")
DERIVED = ("aspect", "min_side")  # of the source's picture; a column of that name goes before


@dataclass(frozen=True)
class Samples:
    """Rows 0 .. total - 1 are the kept samples in the order of their keys."""

    root: Path
    info: DatasetInfo
    commits: tuple[Commit, ...]
    starts: npt.NDArray[np.int64]  # [shards + 1], the first row of each shard
    schema: pa.Schema  # of the metadata

    @property
    def total(self) -> int:
        """Number of rows."""
        return int(self.starts[-1])

    def shard_rows(self, shard: int) -> tuple[int, int]:
        """First row of a shard, and the one after its last."""
        return int(self.starts[shard]), int(self.starts[shard + 1])

    def metadata_file(self, row: int) -> Path:
        """The metadata file that holds a row."""
        shard = int(np.searchsorted(self.starts, row, side="right")) - 1
        return metadata_path(self.root, shard)

    def keys(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Keys of rows, as numbers."""
        shard = np.searchsorted(self.starts, rows, side="right") - 1
        return np.asarray(shard * KEYS_PER_SHARD + rows - self.starts[shard], np.int64)

    def rows(self, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Rows of keys; those that are no key of the DATASET become -1."""
        shard, within = np.divmod(keys, KEYS_PER_SHARD)
        known = (shard >= 0) & (shard < self.info.shards)
        first = self.starts[np.where(known, shard, 0)]
        known &= within < self.starts[np.where(known, shard, 0) + 1] - first
        return np.where(known, first + within, -1)

    def scan(
        self, whole: Progress, columns: Sequence[str], work: Callable[[int, pa.Table], T]
    ) -> Iterator[T]:
        """What `work(first_row, table)` gives for each shard with rows, in order.

        A few shards are read at a time, on a thread each. Rows are counted in `whole`.
        """
        shards = [commit.shard for commit in self.commits if commit.kept]

        def one(shard: int) -> tuple[int, T]:
            first, end = self.shard_rows(shard)
            return end - first, work(first, self._read(shard, columns))

        threads = _READ_AHEAD * len(os.sched_getaffinity(0))
        for count, result in map_ahead(one, shards, threads):
            yield result
            whole.advance(count)

    def _read(self, shard: int, columns: Sequence[str]) -> pa.Table:
        path = metadata_path(self.root, shard)
        derived = [name for name in columns if name in DERIVED and name not in self.schema.names]
        wanted = dict.fromkeys([c for c in columns if c not in derived])
        if derived or not wanted:
            wanted |= dict.fromkeys(_SIDES)
        try:
            table = pq.ParquetFile(path).read(columns=list(wanted))
            if not self.info.has_pictures:
                table = _without_untold(table)
            for name in derived:
                table = table.append_column(name, _derive(table, name))
        except (OSError, KeyError, pa.ArrowException) as error:
            raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
        first, end = self.shard_rows(shard)
        if table.num_rows != end - first:
            raise UserError(
                f"{path}: rows: got {table.num_rows}, expected {end - first}; "
                "run `unclip data verify`"
            )
        return table


def open_samples(root: Path) -> Samples:
    """The rows of a finished DATASET.

    Raises:
        UserError: `root` is none, or unfinished, or damaged.
        NothingUsable: it has no rows.
    """
    info = read_dataset(root)
    commits = []
    for shard in range(info.shards):
        commit = read_commit(root, shard)
        if commit is None:
            raise UserError(f"{root}: shard {shard} has no commit; run `unclip data prepare` again")
        commits.append(commit)
    full = next((commit.shard for commit in commits if commit.kept), None)
    if full is None:
        raise NothingUsable(f"{root}: has no rows")
    path = metadata_path(root, full)
    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    return end_to_end(root, info, commits, schema)


def end_to_end(
    root: Path, info: DatasetInfo, commits: Sequence[Commit], schema: pa.Schema
) -> Samples:
    """The rows that the commits tell of, one for each shard."""
    starts = np.zeros(info.shards + 1, np.int64)
    np.cumsum([commit.kept for commit in commits], out=starts[1:])
    return Samples(root, info, tuple(commits), starts, schema)


def column_type(schema: pa.Schema, name: str, field: str) -> pa.DataType:
    """The type of a metadata column, or of one derived from others.

    Raises:
        UserError: there is no such column; begins with `field`.
    """
    if name in schema.names:
        return schema.field(name).type
    if name in DERIVED:
        return pa.int32() if name == "min_side" else pa.float64()
    own = [column for column in schema.names if column not in METADATA_SCHEMA.names]
    raise UserError(
        f"{field}: got {name!r}, expected a metadata column"
        f" ({', '.join([*own, 'similarity', 'width', 'original_width'][:12])}, ...)"
        f" or {' or '.join(DERIVED)}"
    )


def is_number(kind: pa.DataType) -> bool:
    """Whether the values of a column can be compared with a number."""
    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    )


def _without_untold(table: pa.Table) -> pa.Table:
    """Published embeddings have 0 for a side that their source does not tell: here it is null."""
    for place, name in enumerate(table.schema.names):
        if name in _SIDES:
            side = table[name]
            told = pc.if_else(pc.equal(side, 0), pa.scalar(None, side.type), side)
            table = table.set_column(place, name, told)
    return table


def _derive(table: pa.Table, name: str) -> pa.ChunkedArray:
    width, height = (table[side] for side in _SIDES)
    least = pc.min_element_wise(width, height, skip_nulls=False)
    if name == "min_side":
        return least
    most = pc.max_element_wise(width, height, skip_nulls=False)
    return pc.divide(pc.cast(most, pa.float64()), pc.cast(least, pa.float64()))
