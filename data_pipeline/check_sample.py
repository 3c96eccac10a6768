"""Checks of one sample's members against its row of the metadata, for `verify`."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import simplejpeg
from PIL import Image

from data_pipeline import columns
from data_pipeline.phash import phash

# What KEY.json begins with, in this order; the input's other columns follow.
_HEAD = (
    *("key", "caption", "captions", "row", "source_key", "url", "width", "height"),
    *("original_width", "original_height", "sha256", "phash"),
)
_PHASH_BITS = 2  # of 64 that another version of a JPEG decoder may turn


def sample_problem(
    members: Mapping[str, bytes], row: Mapping[str, Any], extra: Sequence[pa.Field]
) -> str | None:
    """What is wrong with one sample's members, or None.

    `row` is its row of the metadata, `extra` are the metadata's columns that the input brought.
    """
    if members["txt"].decode() != row["caption"] or row["captions"][:1] != [row["caption"]]:
        return "the caption of .txt, metadata and captions differ"
    return _json_problem(members["json"], row, extra) or _picture_problem(members["jpg"], row)


def _json_problem(body: bytes, row: Mapping[str, Any], extra: Sequence[pa.Field]) -> str | None:
    told = json.loads(body)
    for name in _HEAD:
        if name not in told or told[name] != row[name]:
            return f"{name} of .json and metadata differ"
    for field in extra:
        if not agrees(told.get(field.name), row[field.name], field.type):
            return f"{field.name} of .json and metadata differ"
    written = {name: row[name] for name in _HEAD}
    written |= {name: value for name, value in told.items() if name not in written}
    if columns.json_text(written).encode("utf-8", "replace") != body:
        return ".json is not written as we write it: it was changed"
    return None


def agrees(told: Any, value: Any, kind: pa.DataType) -> bool:
    """Whether a value of KEY.json and one of a column can be of the same value of the input.

    The column may be of a wider type than its input; what does not fit it is null there.
    """
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return bool(value == told or value == columns.json_text(told))
    if _filled(told) == _filled(json.loads(columns.json_text(value))):
        return True
    if isinstance(told, str) and pa.types.is_duration(kind) and value is not None:
        return told == str(pa.scalar(value, pa.duration("us")).as_py())  # as a coarser unit's
    if isinstance(told, str) and pa.types.is_floating(kind) and value is None:
        return True  # a text beside numbers
    return bool(value == _as_kind(told, kind))


def _filled(value: Any) -> Any:
    """The value without fields that are null: another input's struct may not have them."""
    if isinstance(value, dict):
        return {name: _filled(item) for name, item in value.items() if item is not None}
    return [_filled(item) for item in value] if isinstance(value, list) else value


def _as_kind(told: Any, kind: pa.DataType) -> Any:
    """A value of KEY.json as a column of this type would give it back; None where it cannot."""
    text = (pa.types.is_temporal, pa.types.is_decimal, pa.types.is_floating)  # in KEY.json
    if isinstance(told, str) and any(is_kind(kind) for is_kind in text):
        try:
            return pa.scalar(told).cast(kind).as_py()
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return None
    return columns.as_array([told], kind)[0].as_py()


def _picture_problem(jpeg: bytes, row: Mapping[str, Any]) -> str | None:
    with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as header:
        if header.mode != "RGB" or header.info.get("exif"):
            return "the picture is not plain RGB without EXIF"
    try:
        pixels = simplejpeg.decode_jpeg(jpeg, "RGBX", strict=True)
    except ValueError as error:
        return f"the picture is damaged ({error})"
    height, width = pixels.shape[:2]
    if (width, height) != (row["width"], row["height"]):
        return f"the picture is {width}x{height}, metadata says {row['width']}x{row['height']}"
    if not jpeg.endswith(b"\xff\xd9"):
        return "the picture has bytes after its end"
    return _phash_problem(phash(pixels), row["phash"])


def _phash_problem(found: str, told: str) -> str | None:
    try:
        differing = (int(found, 16) ^ int(told, 16)).bit_count()
    except ValueError:
        differing = 64
    if differing > _PHASH_BITS or len(told) != len(found):
        return f"phash: the picture's is {found}, metadata says {told}"
    return None
