"""Writers of a shard's files, byte for byte the same for the same content; hashed while written."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.schema.dataset import FileRecord

_BLOCK = 512
_NAME_BYTES = 100
# The parts of a header that never differ, and the sum of their bytes.
_OWNER = b"0000644\0" + b"0000000\0" * 2  # mode, uid, gid
_TIME = b"\0" + b"00000000000\0"  # the end of the size, then mtime
_KIND = (
    b"0"
    + b"\0" * 100  # a regular file, no link
    + b"ustar\x0000"  # magic and version; owner names, device numbers, prefix stay empty
).ljust(_BLOCK - 156, b"\0")
_REST_SUM = sum(_OWNER + _TIME + b" " * 8 + _KIND)  # the checksum itself counts as spaces


class HashedFile(io.RawIOBase):
    """A new file in a folder that is there; it knows its hash, and is fsynced when closed."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb", buffering=1 << 18)
        self._digest = hashlib.sha256()
        self._size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        written = self._file.write(data)
        self._digest.update(data)
        self._size += written
        return written

    def tell(self) -> int:
        return self._size

    def close(self) -> None:
        if not self._file.closed:
            try:
                self._file.flush()
                os.fsync(self._file.fileno())
            finally:
                self._file.close()
        super().close()

    def record(self, rows: int) -> FileRecord:
        """The commit's record of this file."""
        return FileRecord(self._digest.hexdigest(), self._size, rows)


def ustar_header(name: str, size: int) -> bytes:
    """A 512-byte header: regular file, mode 644, mtime, uid and gid 0, no owner names.

    Raises:
        ValueError: the name or size does not fit plain ustar.
    """
    encoded = name.encode("ascii")
    if len(encoded) > _NAME_BYTES or not 0 <= size < 8**11:
        raise ValueError(f"name, size: got {name!r}, {size}, expected what ustar can hold")
    digits = b"%011o" % size
    total = _REST_SUM + sum(encoded) + sum(digits)
    return b"".join(
        (encoded.ljust(_NAME_BYTES, b"\0"), _OWNER, digits, _TIME, b"%06o\0 " % total, _KIND)
    )


class TarWriter:
    """A plain ustar file, ended by two zero blocks."""

    def __init__(self, path: Path) -> None:
        self.file = HashedFile(path)

    def add(self, name: str, data: bytes) -> int:
        """Appends a member; gives the offset of its data."""
        offset = self.file.tell() + _BLOCK
        padding = b"\0" * (-len(data) % _BLOCK)
        self.file.write(b"".join((ustar_header(name, len(data)), data, padding)))
        return offset

    def __enter__(self) -> TarWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.file.write(b"\0" * 2 * _BLOCK)
        self.file.close()


def write_embeddings(path: Path, rows: npt.NDArray[np.float16]) -> FileRecord:
    """npy 1.0, `<f2`, C order, [n, D]."""
    array = np.ascontiguousarray(rows, dtype="<f2")
    with HashedFile(path) as file:
        np.lib.format.write_array(file, array, version=(1, 0), allow_pickle=False)
    return file.record(len(array))


def write_parquet(path: Path, table: pa.Table) -> FileRecord:
    """One row group (none for an empty table), zstd."""
    schema = pa.schema([field.with_type(_as_read(field.type)) for field in table.schema])
    with HashedFile(path) as file:
        pq.write_table(
            table.cast(schema.with_metadata(table.schema.metadata)),
            pa.PythonFile(file, mode="w"),
            row_group_size=max(1, table.num_rows),
            compression="zstd",
            write_statistics=True,
        )
    return file.record(table.num_rows)


def _as_read(kind: pa.DataType) -> pa.DataType:
    """The type that Parquet gives back: items of lists are called `element` there.

    The name is written along, so that a table from memory and one from a file would differ.
    """
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_as_read(field.type)) for field in kind])
    for is_kind, make in ((pa.types.is_list, pa.list_), (pa.types.is_large_list, pa.large_list)):
        if is_kind(kind):
            item = kind.value_field
            return make(item.with_name("element").with_type(_as_read(item.type)))
    return kind


def with_note(table: pa.Table, name: str, value: Mapping[str, Any]) -> pa.Table:
    """The table with JSON in its schema's metadata."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return table.replace_schema_metadata({**(table.schema.metadata or {}), name: text})


def read_note(schema: pa.Schema, name: str) -> Any:
    """What `with_note` left, or None."""
    value = (schema.metadata or {}).get(name.encode())
    return None if value is None else json.loads(value)
