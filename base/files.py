"""Files that are whole or absent: atomic writes, hashes, free space."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from base.errors import UserError
from base.places import Anywhere, local_file, place
from base.stores import StorePath

_BLOCK = 1 << 20


def sha256_file(path: Anywhere) -> str:
    """The file's SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    with place(path).open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def atomic_path(path: Anywhere) -> Iterator[Path]:
    """Yields a temporary path beside `path`; what was written there becomes `path` at the end.

    For an object in a store the temporary path is local, and one upload makes the object.

    The bytes reach the disk before the name does (fsync, rename, fsync of the folder), so whoever
    finds `path` finds it whole. When the block raises, the temporary file is removed and `path`
    stays as it was. The folder is made if it is missing.
    """
    target = place(path)
    if isinstance(target, StorePath):
        with local_file(target) as temporary:
            yield temporary
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, target)
        sync(target.parent)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise


def write_atomic(path: Anywhere, data: bytes | str) -> None:
    """Writes the whole of `path` or leaves it as it was; text is UTF-8."""
    data = data.encode() if isinstance(data, str) else data
    target = place(path)
    if isinstance(target, StorePath):
        target.write_bytes(data)
        return
    with atomic_path(target) as temporary:
        temporary.write_bytes(data)


def write_json(path: Anywhere, value: object) -> None:
    """Writes JSON atomically: keys in their own order, indented by 2, ended by a newline."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Anywhere) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: the file is missing, unreadable or not JSON; the message names it.
    """
    try:
        return json.loads(place(path).read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not JSON (it is not UTF-8 text)") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON ({error.msg}; line {error.lineno})") from error


def require_free_space(folder: Anywhere, bytes_needed: int) -> None:
    """Refuses to begin what cannot fit; a store has room.

    Raises:
        UserError: the file system that holds `folder` (or will hold it) has less free space.
    """
    top = place(folder).absolute()
    if isinstance(top, StorePath):
        return
    while not top.exists():
        top = top.parent
    free = shutil.disk_usage(top).free
    if free < bytes_needed:
        raise UserError(
            f"{folder}: needs {_size(bytes_needed)} of disk, {_size(free)} are free; "
            "free some and run it again"
        )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def sync(path: Path) -> None:
    """Brings a file's bytes, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
