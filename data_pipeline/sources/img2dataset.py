"""What img2dataset writes, as an input: tars, pairs or parquet, with records of its own beside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from base.places import Place
from data_pipeline.parquet import read_schema

_OWN = {"key", "status", "error_message"}  # columns that it adds to those of its input


def are_records(tables: Iterable[Place]) -> bool:
    """Whether the parquet files are its accounts of pictures that lie elsewhere."""
    return all(_is_record(path) for path in tables)


def records(folder: Place) -> list[str]:
    """Names of its accounts in a folder of pairs: their rows are in the pairs' own .json."""
    return sorted(path.name for path in folder.glob("*.parquet") if _is_record(path))


def _is_record(path: Place) -> bool:
    try:
        schema = read_schema(path)
    except (pa.ArrowException, OSError):
        return False
    return set(schema.names) >= _OWN and not any(pa.types.is_binary(kind) for kind in schema.types)


def why_not(row: Mapping[str, Any]) -> str | None:
    """What its account of a row says of a picture that is not there."""
    if not set(row) >= _OWN or row["status"] in (None, "success"):
        return None
    return f"img2dataset: {row['status']}: {row['error_message']}"
