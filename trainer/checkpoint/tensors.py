"""The safetensors format, written tensor by tensor and read range by range: never whole in memory.

Files are read, not mapped: pages of a mapping count as the process's memory, and one that is cut
short while it is mapped kills the process.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from operator import index
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from base.errors import UserError
from trainer.checkpoint.records import unique

_LARGEST_HEADER = 100_000_000  # bytes; the format's own limit
_TYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in _TYPES.items()}


class Entry(NamedTuple):
    """One tensor to be written; `load` gives it when its turn comes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    load: Callable[[], Tensor]


class FileRecord(NamedTuple):
    """What a manifest says of a file."""

    bytes: int
    sha256: str


class _Stored(NamedTuple):
    """Where a tensor lies in a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    place: int  # of its first byte


class TensorFile:
    """The tensors of a file, by name.

    Raises:
        UserError: the file cannot be read, or is no safetensors file; here and when it is used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._tensors = _read_header(path)
        except OSError as error:
            raise self._unreadable(str(error.strerror)) from error
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise self._unreadable("not a safetensors file") from error

    def dtype(self, name: str, length: int) -> torch.dtype:
        """The type of a flat tensor's `length` elements."""
        stored = self._find(name)
        if stored.shape != (length,):
            raise UserError(f"{self._path}: {name}: got {list(stored.shape)}, expected [{length}]")
        return stored.dtype

    def read(self, name: str, start: int, into: Tensor) -> None:
        """Fill `into` [N], of the tensor's type, with its flat elements from `start` on."""
        stored, data = self._find(name), into.view(torch.uint8).numpy().data
        with self._path.open("rb") as file:
            file.seek(stored.place + start * stored.dtype.itemsize)
            if file.readinto(data) != len(data):
                raise self._unreadable(f"{name} is cut short")

    def _find(self, name: str) -> _Stored:
        if name not in self._tensors:
            raise self._unreadable(f"no tensor {name}")
        return self._tensors[name]

    def _unreadable(self, why: str) -> UserError:
        return UserError(f"{self._path}: cannot be read ({why})")


def entry_of(name: str, tensor: Tensor) -> Entry:
    """An entry whose tensor is at hand."""
    return Entry(name, tensor.dtype, tuple(tensor.shape), lambda: tensor)


def write_tensors(
    path: Path, entries: Iterable[Entry], metadata: Mapping[str, str] | None = None
) -> FileRecord:
    """Write a safetensors file and bring it to the disk; only one tensor is held at a time."""
    ordered = list(entries)
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for entry in ordered:
        size = _bytes_of(entry)
        header[entry.name] = {
            "dtype": _TYPES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # readers want the data aligned
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for block in (len(text).to_bytes(8, "little"), text):
            digest.update(block)
            file.write(block)
        for entry in ordered:
            data = _data(entry)
            digest.update(data)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return FileRecord(8 + len(text) + offset, digest.hexdigest())


def _read_header(path: Path) -> dict[str, _Stored]:
    with path.open("rb") as file:
        size, room = int.from_bytes(file.read(8), "little"), path.stat().st_size - 8
        if size > min(_LARGEST_HEADER, room):
            raise ValueError(f"header of {size} bytes")
        header = json.loads(file.read(size), object_pairs_hook=unique)
    header.pop("__metadata__", None)
    return {name: _place(item, 8 + size, room - size) for name, item in header.items()}


def _place(item: Mapping[str, Any], data: int, room: int) -> _Stored:
    """A tensor by its entry in the header of a file that has `room` bytes from `data` on."""
    dtype = _DTYPES[item["dtype"]]
    shape = tuple(map(index, item["shape"]))
    begin, end = map(index, item["data_offsets"])
    if not 0 <= begin <= end <= room or end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"offsets {begin} to {end}")
    return _Stored(dtype, shape, data + begin)


def _data(entry: Entry) -> memoryview:
    tensor = entry.load().detach().to("cpu").contiguous()
    if tensor.dtype != entry.dtype or tuple(tensor.shape) != entry.shape:
        raise ValueError(
            f"{entry.name}: got {tensor.dtype} {tuple(tensor.shape)}, "
            f"expected {entry.dtype} {entry.shape}"
        )
    data: memoryview = tensor.reshape(-1).view(torch.uint8).numpy().data
    return data


def _bytes_of(entry: Entry) -> int:
    count = 1
    for side in entry.shape:
        count *= side
    return count * entry.dtype.itemsize
