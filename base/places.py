"""Places: local paths, and addresses in object stores or on the web, read and written alike."""

from __future__ import annotations

import io
import os
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar, cast

from base.errors import UserError
from base.scratch import scratch_folder
from base.store_errors import shown
from base.stores import READ_AHEAD, StorePath, impatient

Place = Path | StorePath
Anywhere = str | os.PathLike[str] | StorePath

P = TypeVar("P", bound=Place)

_COPIES = {"s3": "aws s3 sync", "gs": "gcloud storage rsync -r"}  # of folders, by scheme


def place(given: Anywhere) -> Place:
    """The place that a user's text names; SCHEME://… is an address, everything else a local path.

    Raises:
        UserError: the address is of no kind that is known.
    """
    if isinstance(given, StorePath):
        return given
    if isinstance(given, str) and "://" in given:
        return StorePath(given)
    return Path(given)


def folder_place(given: Anywhere) -> Place:
    """`place` for a DATASET; a store is asked for a first answer, which is not waited for.

    Raises:
        UserError: files on the web have no folders; the store does not answer, or not to us.
    """
    found = place(given)
    if isinstance(found, StorePath):
        if found.on_web:
            raise UserError(f"{shown(str(found))}: expected a local folder, s3:// or gs://")
        with impatient():
            found.exists()
    return found


def local_folder(given: str) -> Path:
    """The local folder that a user's text names.

    Raises:
        UserError: it is an address.
    """
    found = place(given)
    if not isinstance(found, StorePath):
        return found
    address = shown(str(found))
    how = _COPIES.get(found.scheme)
    told = f"; copy it to one first, such as by `{how} {address} FOLDER`" if how else ""
    raise UserError(f"{address}: expected a local folder{told}")


def below(root: P, *parts: str) -> P:
    """A place below `root`, of its kind."""
    return cast(P, root.joinpath(*parts))


def children(folder: Place) -> list[Place]:
    """What lies in a folder, sorted; nothing where there is none."""
    found: list[Place] = list(folder.iterdir()) if folder.is_dir() else []
    return sorted(found, key=str)


def files_below(folder: Place) -> list[str]:
    """Relative paths of every file below a folder, sorted."""
    if isinstance(folder, StorePath):
        return sorted(str(path.relative_to(folder)) for path in folder.rglob())
    found = (path for path in folder.rglob("*") if not path.is_dir())
    return sorted(path.relative_to(folder).as_posix() for path in found)


def beside(file: Place, path: str) -> Place:
    """The place that `path` means where it is written in the table `file`.

    Raises:
        ValueError: a table that is no local one names a local file, or leaves its bucket.
    """
    if path.startswith(("s3://", "gs://")):
        try:
            return StorePath(path)
        except UserError as error:
            raise ValueError(str(error)) from error
    if not isinstance(file, StorePath):
        return file.parent / path
    inside = posixpath.normpath(posixpath.join(file.parent.key, path))
    outside = inside in (".", "..") or inside.startswith("../")
    if file.on_web or path.startswith("/") or outside or "://" in path:
        raise ValueError(f"{path!r}: not a path below the bucket of the table")
    return StorePath(f"{file.scheme}://{file.bucket}/{inside}")


class Part(Protocol):
    """Reads parts of an open file."""

    def __call__(self, offset: int, size: int) -> bytes:
        """Bytes from `offset` on; fewer where the file ends."""

    def into(self, offset: int, buffer: memoryview) -> int:
        """Fill a buffer of bytes; how many were read, fewer where the file ends."""

    def expect(self, offset: int, size: int) -> None:
        """Say that this part will be read soon: a disk fetches it meanwhile."""


class _LocalPart:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __call__(self, offset: int, size: int) -> bytes:
        return os.pread(self._descriptor, size, offset)

    def into(self, offset: int, buffer: memoryview) -> int:
        return os.preadv(self._descriptor, [buffer], offset)

    def expect(self, offset: int, size: int) -> None:
        if hasattr(os, "posix_fadvise"):  # Linux has it, macOS has not
            os.posix_fadvise(self._descriptor, offset, size, os.POSIX_FADV_WILLNEED)


class _StorePart:
    def __init__(self, opened: io.BufferedIOBase) -> None:
        self._opened = opened

    def __call__(self, offset: int, size: int) -> bytes:
        self._opened.seek(offset)
        return self._opened.read(size)

    def into(self, offset: int, buffer: memoryview) -> int:
        data = self(offset, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def expect(self, offset: int, size: int) -> None:
        """Nothing: a request to a store is made when it is waited for, by many threads."""


@contextmanager
def parts_of(file: Place, ahead: int = READ_AHEAD) -> Iterator[Part]:
    """Gives what reads parts of a file; neighbours in a store come in one request.

    `ahead` is how much more than a part is read at once from there.
    """
    if isinstance(file, StorePath):
        with file.open(ahead=ahead) as opened:
            yield _StorePart(opened)
    else:
        descriptor = os.open(file, os.O_RDONLY)  # a file object would bring a buffer, for nothing
        try:
            yield _LocalPart(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def local_file(target: StorePath) -> Iterator[Path]:
    """Gives a local path; what was written there is put to `target` at the end."""
    with scratch_folder() as folder:
        yield folder / target.name
        target.upload(folder / target.name)
