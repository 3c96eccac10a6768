"""Addresses in object stores and on the web, with as much of pathlib's face as is needed.

fsspec does the talking. What is added: nothing is cached, errors are one line with the address,
what may pass is tried again, and an object is whole or absent, as every one of them is one PUT.
"""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

from base.errors import UserError
from base.store_errors import StoreSilent, shown, told

_EXTRAS = {"s3": "s3", "gs": "gcs"}
WEB = ("http", "https")  # files that can be read, and nothing else
SCHEMES = (*_EXTRAS, *WEB)
PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds between tries, beside what the client itself tries
READ_AHEAD = 8 << 20  # bytes: a request's wait is worth one or two MB
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_WEB_SECONDS = 60.0  # without a byte
_patient: ContextVar[bool] = ContextVar("patient", default=True)

T = TypeVar("T")


@dataclass(frozen=True)
class Stat:
    """What a listing says of an object; `tag` changes with its content."""

    st_size: int
    is_file: bool = True
    tag: str = ""


@contextmanager
def impatient() -> Iterator[None]:
    """Within the block what fails is not tried again, but for what the client itself does."""
    token = _patient.set(False)
    try:
        yield
    finally:
        _patient.reset(token)


class StorePath:
    """An object or a folder of a store (s3, gs), or a file on the web (http, https: to be read).

    Raises:
        UserError: the address is of no kind that is known, or names no bucket.
    """

    def __init__(self, address: str, known: Stat | None = None) -> None:
        match = _ADDRESS.fullmatch(address)
        scheme = match[1].lower() if match else ""
        if match is None or scheme not in SCHEMES:
            expected = "a local path, s3://, gs:// or https://"
            raise UserError(f"{address}: got {scheme}://, expected {expected}")
        self.scheme = scheme
        self.on_web = scheme in WEB
        self._key = match[2] if self.on_web else match[2].rstrip("/")
        if not self._key.partition("/")[0]:
            raise UserError(f"{address}: no {'host' if self.on_web else 'bucket'}")
        self._known = known  # from a listing

    def __str__(self) -> str:
        return f"{self.scheme}://{self._key}"

    def __repr__(self) -> str:
        return f"StorePath({shown(str(self))!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StorePath) and str(self) == str(other)

    def __lt__(self, other: StorePath) -> bool:
        return str(self) < str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __reduce__(self) -> tuple[type[StorePath], tuple[str]]:
        return StorePath, (str(self),)

    @property
    def bucket(self) -> str:
        """The bucket's name."""
        return self._key.partition("/")[0]

    @property
    def key(self) -> str:
        """The key within the bucket; empty for the bucket itself."""
        return self._key.partition("/")[2]

    @property
    def name(self) -> str:
        """The last part; of a web address without its query."""
        return PurePosixPath(urlsplit(str(self)).path if self.on_web else self._key).name

    @property
    def suffix(self) -> str:
        """From the name's last dot on."""
        return PurePosixPath(self.name).suffix

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return PurePosixPath(self.name).stem

    def with_name(self, name: str) -> StorePath:
        """The place of that name beside this one."""
        return self.parent / name

    @property
    def parent(self) -> StorePath:
        """The folder; a bucket is its own."""
        return self._at(self._key.rpartition("/")[0]) if self.key else self

    def _at(self, key: str) -> StorePath:
        return StorePath(f"{self.scheme}://{key}")

    def __truediv__(self, other: str | PurePath) -> StorePath:
        return self.joinpath(other)

    def joinpath(self, *others: str | PurePath) -> StorePath:
        """A place below this one."""
        parts = [str(other) for other in others if str(other) != "."]
        if self.on_web or any(part.startswith("/") for part in parts):
            raise ValueError(f"parts: got {parts}, expected relative ones below a folder")
        return self._at("/".join((self._key, *parts)))

    def relative_to(self, other: StorePath) -> PurePosixPath:
        """What must be joined to `other` to give this."""
        return PurePosixPath(self._key).relative_to(other._key)

    def absolute(self) -> StorePath:
        """Itself."""
        return self

    def exists(self) -> bool:
        """Whether an object is there, or any below it."""
        return self._stat() is not None

    def is_file(self) -> bool:
        """Whether an object is there."""
        found = self._stat()
        return found is not None and found.is_file

    def is_dir(self) -> bool:
        """Whether objects are below it; a bucket that is there is a folder."""
        found = self._stat()
        return found is not None and not found.is_file

    def stat(self) -> Stat:
        """Size and tag.

        Raises:
            FileNotFoundError: nothing is there.
        """
        found = self._stat()
        if found is None:
            raise FileNotFoundError(2, "no such file or folder", shown(str(self)))
        return found

    def _stat(self) -> Stat | None:
        if self._known is not None:
            return self._known
        try:
            return _as_stat(self._patiently(lambda fs, path: fs.info(path)))
        except FileNotFoundError:
            return None

    def iterdir(self) -> Iterator[StorePath]:
        """What lies in the folder, with what the listing says of it."""
        yield from self._listed(lambda fs, path: fs.ls(path, detail=True))

    def glob(self, pattern: str) -> Iterator[StorePath]:
        """What lies in the folder and has a name like the pattern."""
        yield from (path for path in self.iterdir() if fnmatchcase(path.name, pattern))

    def rglob(self, pattern: str = "*") -> Iterator[StorePath]:
        """Every object below the folder, by key; marker objects of folders are none."""
        assert pattern == "*", "stores are listed whole"
        found = self._listed(lambda fs, path: fs.find(path, detail=True).values())
        yield from (path for path in found if path.is_file())

    def _listed(self, ask: Callable[[Any, str], Any]) -> list[StorePath]:
        try:
            found = self._patiently(lambda fs, path: list(ask(fs, path)))
        except FileNotFoundError:
            return []
        entries = [(entry["name"].rstrip("/"), _as_stat(entry)) for entry in found]
        prefix = self._key + "/"  # a marker object of the folder's own is none of its entries
        return sorted(
            StorePath(f"{self.scheme}://{name}", known)
            for name, known in entries
            if name.startswith(prefix)
        )

    def open(self, mode: str = "rb", ahead: int = READ_AHEAD) -> io.BufferedIOBase:
        """The object as a file that reads `ahead` bytes more than it is asked for."""
        assert mode == "rb", "objects are written whole"
        return _Reader(self, ahead)

    def read_bytes(self, most: int | None = None) -> bytes:
        """The object, or its first `most` bytes."""
        if self.on_web:
            with self.open(ahead=0) as file:
                return file.read(-1 if most is None else most)
        part = {} if most is None else {"start": 0, "end": most}
        try:
            data: bytes = self._patiently(lambda fs, path: fs.cat_file(path, **part))
        except EOFError:  # an empty object has no first byte
            return b""
        return data

    def read_text(self, encoding: str = "utf-8") -> str:
        """The object as text."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, data: bytes, **only_if: str) -> None:
        """Puts the object; `only_if` are conditions that the store's client understands."""
        self._require_writable()
        self._patiently(lambda fs, path: fs.pipe_file(path, data, **only_if))

    def upload(self, file: Path) -> None:
        """Puts a local file there."""
        self._require_writable()
        self._patiently(lambda fs, path: fs.put_file(str(file), path))

    def copy_to(self, other: StorePath) -> None:
        """Copies the object within the store, on the store's side."""
        self._patiently(lambda fs, path: fs.cp_file(path, other._key))

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes the object."""
        self._require_writable()
        try:
            self._patiently(lambda fs, path: fs.rm_file(path))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove_below(self) -> None:
        """Removes every object below the folder."""
        found = [entry._key for entry in self.rglob()]
        if found:
            self._patiently(lambda fs, path: fs.rm(found))

    def mkdir(self, parents: bool = True, exist_ok: bool = True) -> None:
        """Nothing: a folder is there when something is below it."""

    def rmdir(self) -> None:
        """Nothing: a folder of which nothing is left is gone."""

    def _require_writable(self) -> None:
        if self.on_web:
            raise UserError(f"{shown(str(self))}: files on the web can only be read")

    def _patiently(self, ask: Callable[[Any, str], T]) -> T:
        path = str(self) if self.on_web else self._key
        return patiently(str(self), lambda: ask(_filesystem(self.scheme), path))


def patiently(address: str, ask: Callable[[], T]) -> T:
    """What `ask` gives; where a store is silent it is asked again after each of the pauses.

    Raises:
        StoreError: one line that names the address.
    """
    pauses = iter(PAUSES if _patient.get() else ())
    while True:
        try:
            with told(address):
                return ask()
        except StoreSilent:
            if (pause := next(pauses, None)) is None:
                raise
        time.sleep(pause)


class _Reader(io.BufferedIOBase):
    """A file of fsspec's, whose errors are told and whose silences are waited out."""

    def __init__(self, place: StorePath, ahead: int) -> None:
        self._place = place
        how: dict[str, Any] = {
            "block_size": max(ahead, 1),
            "cache_type": "readahead" if ahead else "none",
        }
        if place.on_web:
            info = place._patiently(lambda fs, path: fs.info(path))
            if not info["size"] or not info.get("partial", True):
                raise self._without_parts()
            how["size"] = info["size"]
        self._file = place._patiently(lambda fs, path: fs.open(path, "rb", **how))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        place: int = self._file.tell()
        return place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        place: int = self._file.seek(offset, whence)
        return place

    def read(self, size: int | None = -1) -> bytes:
        at = self._file.tell()

        def ask() -> bytes:
            self._file.seek(at)
            data: bytes = self._file.read(-1 if size is None else size)
            return data

        try:
            return patiently(str(self._place), ask)
        except ValueError as error:  # what fsspec says when it gets the whole file
            raise self._without_parts() from error

    def _without_parts(self) -> UserError:
        return UserError(
            f"{shown(str(self._place))}: the server gives no size or no parts (HTTP Range) of it; "
            "download it first"
        )

    def read1(self, size: int = -1) -> bytes:
        return self.read(size)

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _as_stat(entry: dict[str, Any]) -> Stat:
    tag = str(entry.get("ETag") or entry.get("etag") or "")
    is_file = entry["type"] == "file" and not entry["name"].endswith("/")
    return Stat(int(entry.get("size") or 0), is_file, tag)


def _filesystem(scheme: str) -> Any:
    """fsspec's file system; one for each thread's event loop and process, as fsspec keeps them."""
    import fsspec

    options: dict[str, Any] = {"use_listings_cache": False}
    if scheme == "s3":
        # One request at a time for one object: parts of 50 MB are held in memory.
        options |= {"max_concurrency": 1, "config_kwargs": _s3_config()}
    elif scheme in WEB:
        from aiohttp import ClientTimeout

        waits = ClientTimeout(total=None, sock_connect=_WEB_SECONDS, sock_read=_WEB_SECONDS)
        plain = {"Accept-Encoding": "identity"}  # parts of a packed answer are no parts of the file
        options["client_kwargs"] = {"timeout": waits, "headers": plain, "trust_env": True}
    try:
        found = fsspec.filesystem(scheme, **options)
        found.retries = 1  # those of s3fs, which would multiply the others
        return found
    except ImportError as error:
        extra = _EXTRAS.get(scheme, scheme)
        raise UserError(
            f"{scheme}://: needs a package that is not installed; pip install 'unclip[{extra}]'"
        ) from error


def _s3_config() -> dict[str, Any]:
    """The client's own tries, where the environment does not say otherwise."""
    if {"AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"} & set(os.environ):
        return {}
    return {"retries": {"mode": "standard", "total_max_attempts": 4}}
