"""The rows of one or several DATASETs laid end to end, for rules that compare them all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from base.errors import UserError
from base.progress import Progress
from data_pipeline.curate.samples import Samples, column_type, is_number, open_samples
from data_pipeline.schema.dataset import DatasetInfo

T = TypeVar("T")


@dataclass(frozen=True)
class Together:
    """Rows 0 .. total - 1 are those of the first DATASET, then those of the second, and so on."""

    parts: tuple[Samples, ...]
    starts: npt.NDArray[np.int64]  # [parts + 1], the first row of each

    @property
    def total(self) -> int:
        """Number of rows."""
        return int(self.starts[-1])

    @property
    def has_pictures(self) -> bool:
        """Whether every DATASET was made of pictures."""
        return all(part.info.has_pictures for part in self.parts)

    @property
    def infos(self) -> tuple[DatasetInfo, ...]:
        """Their records."""
        return tuple(part.info for part in self.parts)

    @property
    def names(self) -> tuple[str, ...]:
        """Last parts of their paths, each another."""
        return tuple(_name(part.root) for part in self.parts)

    def part_of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The place of each row's DATASET among them, [n]."""
        return np.asarray(np.searchsorted(self.starts, rows, side="right") - 1, np.int64)

    def within(self, place: int) -> slice:
        """The rows of one DATASET."""
        return slice(int(self.starts[place]), int(self.starts[place + 1]))

    def metadata_file(self, row: int) -> Path:
        """The metadata file that holds a row."""
        place = int(self.part_of(np.array([row]))[0])
        return self.parts[place].metadata_file(row - int(self.starts[place]))

    def scan(
        self, name: str, columns: Sequence[str], work: Callable[[int, pa.Table], T]
    ) -> Iterator[T]:
        """What `work(first_row, table)` gives for each shard with rows, in order."""
        with Progress(name, total=self.total, unit="rows") as bar:
            kinds = {column: self.column_type(column, column) for column in columns}
            for part, start in zip(self.parts, self.starts.tolist(), strict=False):
                yield from part.scan(bar, columns, partial(_shifted, work, start, kinds))

    def column_type(self, name: str, field: str) -> pa.DataType:
        """The type of a metadata column, or of one derived from others, that holds those of all.

        Numbers of different types are taken as int64 or float64.

        Raises:
            UserError: one has no such column, or what is no number against numbers; begins with
                `field`.
        """
        first = self.parts[0]
        kind = column_type(first.schema, name, field)
        for part in self.parts[1:]:
            try:
                other = column_type(part.schema, name, field)
            except UserError as error:
                raise UserError(f"{part.root}: {error}") from error
            if is_number(kind) and is_number(other):
                kind = _common(kind, other)
            elif other != kind:
                raise UserError(
                    f"{field}: got a column of type {other} in {part.root}, expected {kind}, "
                    f"as in {first.root}"
                )
        return kind


def open_together(roots: Sequence[Path]) -> Together:
    """The rows of finished DATASETs.

    Raises:
        UserError: one is none, or unfinished, or damaged; two have one name.
        NothingUsable: one has no rows.
    """
    names = [_name(root) for root in roots]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"dataset: got two folders named {name!r}, expected DATASETs of different names"
            )
    parts = tuple(open_samples(root) for root in roots)
    starts = np.zeros(len(parts) + 1, np.int64)
    np.cumsum([part.total for part in parts], out=starts[1:])
    return Together(parts, starts)


def _name(root: Path) -> str:
    return os.path.basename(os.path.abspath(root))


def _common(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """A type of numbers for both."""
    if one == other:
        return one
    kinds = (one, other)
    whole = all(pa.types.is_integer(kind) and kind != pa.uint64() for kind in kinds)
    return pa.int64() if whole else pa.float64()


def _shifted(
    work: Callable[[int, pa.Table], T],
    start: int,
    kinds: dict[str, pa.DataType],
    first: int,
    table: pa.Table,
) -> T:
    """The work on a part's rows, counted among those of all, its columns of the common types."""
    for place, name in enumerate(table.schema.names):
        if name in kinds and table[name].type != kinds[name]:
            wide = pc.cast(table[name], kinds[name], safe=False)
            table = table.set_column(place, name, wide)
    return work(start + first, table)
