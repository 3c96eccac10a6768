"""The bytes of a packed file (.gz, .zst), all of them also where it is cut short."""

from __future__ import annotations

import io
from pathlib import PurePath
from typing import BinaryIO

import pyarrow as pa

from base.errors import one_line
from base.places import Place
from base.stores import StorePath

PACKED = {".gz": "gzip", ".zst": "zstd"}
_READ = 256 << 10  # bytes that are unpacked together


class CutShort(Exception):
    """A packed file ends, or is damaged, behind the bytes that were read of it."""


def opened(path: Place) -> BinaryIO:
    """The file's bytes, unpacked where its name says that it is packed.

    What is read of it raises CutShort behind the last byte of a damaged file; OSError where not
    even the first one can be had.
    """
    if PurePath(path.name.lower()).suffix in PACKED:
        return io.BufferedReader(_Unpacked(path), _READ)
    if isinstance(path, StorePath):
        return io.BufferedReader(pa.input_stream(path.open(), compression=None))
    return io.BufferedReader(pa.input_stream(str(path), compression=None))


class _Unpacked(io.RawIOBase):
    """Arrow's stream, which gives nothing of a read that it cannot fill without an error."""

    def __init__(self, path: Place) -> None:
        self._path = path
        self._stream = self._begin()
        self._given = 0
        self._why = ""  # what is wrong with the file; it is then read byte by byte

    def _begin(self) -> pa.NativeFile:
        path = self._path
        file = path.open() if isinstance(path, StorePath) else str(path)
        return pa.input_stream(file, compression=PACKED[PurePath(path.name.lower()).suffix])

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        data = self._upto(len(buffer)) if self._why else self._read(len(buffer))
        buffer[: len(data)] = data
        self._given += len(data)
        return len(data)

    def _read(self, size: int) -> bytes:
        try:
            data: bytes = self._stream.read(size)
        except OSError as error:
            if error.errno is not None:
                raise  # the disk, not the file
            self._why = one_line(error)
            self._again()
            data = self._upto(size)
        return data

    def _again(self) -> None:
        """The stream anew, where it was before the read that failed."""
        self._stream = self._begin()
        left = self._given
        while left:
            left -= len(self._stream.read(min(left, _READ)))

    def _upto(self, size: int) -> bytes:
        data = bytearray()
        try:
            while len(data) < size and (byte := self._stream.read(1)):
                data += byte
        except OSError as error:
            if error.errno is not None:
                raise
        if not data:
            raise CutShort(self._why) if self._given else OSError(self._why)
        return bytes(data)

    def close(self) -> None:
        self._stream.close()
        super().close()
