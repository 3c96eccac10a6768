"""A shard's files as `verify` reads them: each once, hashed on the way, a tar never whole."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from base.files import sha256_file
from base.places import Place
from data_pipeline.problems import Problems
from data_pipeline.schema.dataset import FileRecord

_BLOCK = 1 << 20


class HashedReader:
    """Reads a file from its beginning to its end."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._digest = hashlib.sha256()

    def read(self, size: int) -> bytes:
        """The next bytes; fewer where the file ends."""
        data: bytes = self._file.read(size)
        self._digest.update(data)
        return data

    def finish(self) -> str:
        """Reads what is left; the file's SHA-256 in hexadecimal."""
        while self.read(_BLOCK):
            pass
        return self._digest.hexdigest()


class ShardFiles:
    """The committed files of one shard; a hash that differs from the committed one is a problem."""

    def __init__(self, root: Place, problems: Problems) -> None:
        self.root = root
        self._problems = problems
        self._unread: dict[str, str] = {}  # path -> SHA-256

    def expect(self, files: Mapping[str, FileRecord]) -> None:
        """Notes hashes; files that are missing or of another size are problems at once."""
        for name, record in files.items():
            file = self.root / name
            if not file.is_file():
                self._problems.add(name, "is missing")
            elif (size := file.stat().st_size) != record.bytes:
                self._problems.expect(name, "bytes", size, record.bytes)
            else:
                self._unread[name] = record.sha256

    def read(self, path: Path) -> bytes:
        """The whole of a file that is small: all but tars."""
        data = (self.root / path).read_bytes()
        self._compare(str(path), hashlib.sha256(data).hexdigest())
        return data

    def table(self, path: Path) -> pa.Table:
        """A file of metadata or rejected rows."""
        with pq.ParquetFile(pa.BufferReader(self.read(path))) as file:
            groups = file.num_row_groups
            if groups != 1 and file.metadata.num_rows:
                self._problems.add(path, f"row groups: got {groups}, expected one with all rows")
            return file.read()

    def opened(self, path: Path) -> io.BytesIO:
        """A file of embeddings."""
        return io.BytesIO(self.read(path))

    @contextmanager
    def stream(self, path: Path) -> Iterator[HashedReader]:
        """A file to be read in order; what the block leaves is read at its end."""
        with (self.root / path).open("rb") as file:
            reader = HashedReader(file)
            try:
                yield reader
            finally:
                self._compare(str(path), reader.finish())

    def read_rest(self) -> None:
        """Hashes the files that nothing has read."""
        for name in list(self._unread):
            self._compare(name, sha256_file(self.root / name))

    def _compare(self, name: str, digest: str) -> None:
        expected = self._unread.pop(name, digest)
        if digest != expected:
            self._problems.add(name, "its SHA-256 is not the committed one")
