"""The input's other columns: their types, and their values as arrow and as JSON."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

_BEYOND = 1 << 63  # the first whole number that int64 does not hold
_SCALARS = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}


class Types:
    """Types for the keys of JSON objects, in order of appearance; all objects must be seen.

    Plain scalars keep their type, numbers widen to float64; lists, objects, mixtures and whole
    numbers beyond 64 bits become text that holds JSON.
    """

    def __init__(self) -> None:
        self._found: dict[str, pa.DataType | None] = {}

    def add(self, item: Mapping[str, Any]) -> None:
        """See another object."""
        for name, value in item.items():
            self._found[name] = _merge(self._found.get(name), value)

    def schema(self) -> pa.Schema:
        """The types that hold all that was seen."""
        return pa.schema([(name, kind or pa.string()) for name, kind in self._found.items()])


def infer(objects: Iterable[Mapping[str, Any]]) -> pa.Schema:
    """The types of objects at hand."""
    types = Types()
    for item in objects:
        types.add(item)
    return types.schema()


def _merge(known: pa.DataType | None, value: Any) -> pa.DataType | None:
    if value is None:
        return known
    kind = _SCALARS.get(type(value), pa.string())
    if kind == pa.int64() and not -_BEYOND <= value < _BEYOND:
        kind = pa.string()
    if known is None or known == kind:
        return kind
    numbers = {pa.int64(), pa.float64()}
    return pa.float64() if {known, kind} == numbers else pa.string()


def union(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """One schema for all sources: types widen where they can, otherwise become text."""
    plain = [
        pa.schema([(field.name, _plain(field.type)) for field in schema]) for schema in schemas
    ]
    try:
        return pa.unify_schemas(plain, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        kinds: dict[str, set[pa.DataType]] = {}
        for schema in plain:
            for field in schema:
                kinds.setdefault(field.name, set()).add(field.type)
        return pa.schema([(n, t.pop() if len(t) == 1 else pa.string()) for n, t in kinds.items()])


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return kind.value_type
    return pa.string() if pa.types.is_null(kind) else kind


def as_array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Values as a column; one that does not fit its type is null (KEY.json still holds it)."""
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pa.array([_text(value) for value in values], kind)
    if pa.types.is_integer(kind):  # arrow would cut 5.5 to 5
        values = [None if isinstance(v, float) and not v.is_integer() else v for v in values]
    try:
        return pa.array(values, kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, TypeError, ValueError):
        return pa.array([_fitting(value, kind) for value in values], kind)


def _text(value: Any) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else json_text(value)
    return text.encode("utf-8", "replace").decode("utf-8")  # JSON may hold lone surrogates


def _fitting(value: Any, kind: pa.DataType) -> Any:
    try:
        pa.array([value], kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, TypeError, ValueError):
        return None
    return value


def json_text(value: Any) -> str:
    """Compact JSON of anything a column may hold; NaN and infinities become null."""
    try:
        text = json.dumps(
            value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_jsonable
        )
    except ValueError:
        text = json.dumps(
            _finite(value), ensure_ascii=False, separators=(",", ":"), default=_jsonable
        )
    return text


def _jsonable(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


@dataclass(frozen=True)
class Names:
    """The names that a DATASET's metadata gives the input's columns."""

    new: Mapping[str, str]  # by the input's own name
    taken: frozenset[str]  # lower case

    @staticmethod
    def of(full: pa.Schema, extra: pa.Schema) -> Names:
        """Those that `full` (metadata_schema(extra)) gives the columns of `extra`."""
        new = dict(zip(extra.names, full.names[len(full) - len(extra) :], strict=True))
        return Names(new, frozenset(name.lower() for name in full.names))


def renamed(values: Mapping[str, Any], names: Names) -> dict[str, Any]:
    """Values under their new names.

    A key that no column knows keeps its name, unless that is taken.
    """
    result = {}
    for name, value in values.items():
        new = names.new.get(name)
        if new is None:
            new = name
            while new.lower() in names.taken:
                new = f"input_{new}"
        result[new] = value
    return result
