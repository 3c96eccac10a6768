"""A folder's file that cannot be read: one row, rejected with the reason; the others go on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import pyarrow as pa

from base.errors import UserError
from base.places import Place
from data_pipeline.row import Rejection, Row
from data_pipeline.sources.files import edges
from data_pipeline.sources.source import Source

_EDGE = 1 << 20  # bytes of its beginning and end that tell it from the repaired file
_TOLD = 3  # files that are named


def among(
    found: Sequence[Source | UserError], parts: Sequence[tuple[Place, str, Place]]
) -> list[Source]:
    """A folder's sources, errors as sources of one row; `parts` are (place, name, _) of each.

    Raises:
        UserError: none can be read; what is wrong with the first.
    """
    errors = [item for item in found if isinstance(item, UserError)]
    if len(errors) == len(found):
        raise errors[0]
    told = [str(error) for error in errors[:_TOLD]]
    if len(errors) > _TOLD:
        told.append(f"{len(errors) - _TOLD} further files cannot be read")
    notes = iter([tuple(told)] if told else [])
    return [
        item if isinstance(item, Source) else _broken(path, name, item, next(notes, ()))
        for item, (path, name, _) in zip(found, parts, strict=True)
    ]


def _broken(path: Place, name: str, error: UserError, notes: tuple[str, ...]) -> Source:
    return Source(
        kind="broken",
        name=name,
        path=path.name,
        rows=1,
        fingerprint=hashlib.sha256(edges(path, _EDGE)).hexdigest(),
        table="",
        extra=pa.schema([]),
        notes=notes,
        problem=str(error).removeprefix(f"{path}: "),
    )


def read(source: Source, first: int, count: int, max_bytes: int) -> Iterator[Row]:
    """Its one row."""
    if count:
        yield Row(source.path, problem=Rejection("broken_source", source.problem))
