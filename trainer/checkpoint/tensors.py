"""The safetensors format, written tensor by tensor: hashed on the way, never whole in memory."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

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
