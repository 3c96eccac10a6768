"""Which column of a table holds what: recognised by name and type, or named by the user."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from base.errors import UserError
from data_pipeline.config import ColumnsConfig
from data_pipeline.sources import texts

BY_NAME = ColumnsConfig()
CAPTION = (
    "top_caption",
    "all_captions",
    "caption",
    "captions",
    "text",
    "texts",
    "txt",
    "prompt",
    "title",
)
_TOGETHER = (("top_caption", "all_captions"), ("caption", "captions"))
_PATH = ("file", "path", "filename", "file_name", "filepath", "file_path", "image_path", "image")
_BYTES = ("jpg", "jpeg", "png", "webp", "image", "image_bytes", "bytes")
_URL = ("url", "image_url")
_HASHES = {"md5": 32, "sha256": 64}  # hex digits
KEYS = ("key", "__key__", "uid", "id", "sample_id")
TEXT = {*CAPTION, *_PATH, *_URL, *KEYS, *_HASHES}


@dataclass(frozen=True)
class Roles:
    """Which column holds what; None where no column does."""

    captions: tuple[str, ...]
    path: str | None
    image: str | None
    url: str | None
    key: str | None
    sidecar: str | None  # text that holds a JSON object with further columns
    hashes: Mapping[str, str]  # md5, sha256: the column with what is expected behind `url`

    @property
    def consumed(self) -> set[str]:
        """Columns that do not travel on under their own names."""
        names = {self.path, self.image, self.url, self.sidecar, *self.captions, texts.BAD}
        return {name for name in names if name}


def find_roles(
    schema: pa.Schema, where: str, picture: bool = True, named: ColumnsConfig = BY_NAME
) -> Roles:
    """Recognises the columns by name, case ignored, and type; those that are `named` are taken.

    Raises:
        UserError: no caption column, or (with `picture`) none with a path, bytes or an address; a
            named column is missing or of the wrong type.
    """
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise UserError(f"{where}: two columns are called {twice[0]!r}")
    names = {name.lower(): name for name in reversed(schema.names)}

    def pick(candidates: tuple[str, ...], fits: Any) -> list[str]:
        known = [names[c] for c in candidates if c in names]
        return [name for name in known if fits(schema.field(name).type)]

    def first(candidates: tuple[str, ...], fits: Any) -> str | None:
        return next(iter(pick(candidates, fits)), None)

    def one(field: str, known: tuple[str, ...], fits: Any) -> str | None:
        given = getattr(named, field)
        return first(known, fits) if given is None else _named(schema, where, field, given, fits)

    captions = [_named(schema, where, "captions", n, _is_caption) for n in named.captions]
    roles = Roles(
        captions=tuple(captions or _one_caption_column(pick(CAPTION, _is_caption))),
        path=one("path", _PATH, _is_text),
        image=one("image", _BYTES, _is_bytes),
        url=one("url", _URL, _is_text),
        key=one("key", KEYS, _is_key),
        sidecar=first(("json",), _is_text),
        hashes={name: column for name in _HASHES if (column := first((name,), _is_text))},
    )
    # Then that is where the picture is; but a folder's table says of its files where they are from.
    if picture and named.url and not (named.path or named.image):
        roles = replace(roles, path=None, image=None)
    have = _names(schema)
    if not roles.captions:
        _require_type(schema, where, pick(CAPTION, _is_any), "text")
        raise UserError(f"{where}: no caption column (one of {', '.join(CAPTION)}); it has {have}")
    if picture and not (roles.path or roles.image or roles.url):
        _require_type(schema, where, pick((*_URL, *_PATH), _is_any), "text")
        _require_type(schema, where, pick(_BYTES, _is_any), "bytes")
        raise UserError(f"{where}: no column with an address, a path or bytes; it has {have}")
    return roles


def key_column(schema: pa.Schema) -> str | None:
    """The column whose values would be keys."""
    names = {name.lower(): name for name in reversed(schema.names)}
    fitting = (names[k] for k in KEYS if k in names and _is_key(schema.field(names[k]).type))
    return next(fitting, None)


def text_names(named: ColumnsConfig) -> tuple[set[str], set[str]]:
    """Lower names of the columns that are text whatever they hold, and those of captions."""
    captions = {*CAPTION, *(name.lower() for name in named.captions)}
    given = {name.lower() for name in (named.path, named.url, named.key) if name}
    return TEXT | captions | given, captions


def _named(schema: pa.Schema, where: str, field: str, name: str, fits: Any) -> str:
    if name not in schema.names or name == texts.BAD:
        raise UserError(f"columns.{field}: got {name!r}, {where} has {_names(schema)}")
    if not fits(schema.field(name).type):
        kind, expected = schema.field(name).type, "bytes" if field == "image" else "text"
        raise UserError(f"columns.{field}: {name!r} of {where} is {kind}, expected {expected}")
    return name


def _require_type(schema: pa.Schema, where: str, found: list[str], expected: str) -> None:
    """Refuses the first of the columns that have a role's name and another type."""
    if found:
        kind = schema.field(found[0]).type
        raise UserError(f"{where}: column {found[0]!r} is {kind}, expected {expected}")


def _names(schema: pa.Schema) -> str:
    """The columns that the user knows."""
    return ", ".join(name for name in schema.names if name != texts.BAD)


def _one_caption_column(found: list[str]) -> list[str]:
    """One and all captions belong together; other names are alternatives to them."""
    for pair in _TOGETHER:
        if paired := [name for name in found if name.lower() in pair]:
            return paired
    return found[:1]


def _is_any(kind: pa.DataType) -> bool:
    return True


def _is_caption(kind: pa.DataType) -> bool:
    """Text, lists of it, or its bytes."""
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return True
    return _is_text(kind) or _is_text_list(kind)


def _is_key(kind: pa.DataType) -> bool:
    return _is_text(kind) or pa.types.is_integer(kind)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    known = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(is_one(kind) for is_one in known)


def _is_text_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _is_text(
        kind.value_type
    )


def _is_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):  # the form of Hugging Face: {bytes, path}
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_bytes(kind.field(index).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def other_columns(schema: pa.Schema, roles: Roles) -> pa.Schema:
    """The columns that have no role."""
    return pa.schema([field for field in schema if field.name not in roles.consumed])


def expected_hashes(roles: Roles, row: Mapping[str, Any]) -> dict[str, str]:
    """md5 and sha256 of the picture, where the row has them."""
    found = {}
    for name, column in roles.hashes.items():
        value = row[column]
        if isinstance(value, str) and re.fullmatch(rf"[0-9a-fA-F]{{{_HASHES[name]}}}", value):
            found[name] = value.lower()
    return found
