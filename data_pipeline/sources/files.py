"""Whole files that a row names: read if they are there, regular and small enough."""

from __future__ import annotations

import os
import stat

from base.places import Place
from base.stores import StorePath
from data_pipeline.row import Rejection


def store_tag(path: Place) -> str:
    """What a store says of an object that changes with its content; of other files nothing.

    What web servers say may differ from one of them to the next.
    """
    return path.stat().tag if isinstance(path, StorePath) and not path.on_web else ""


def edges(path: Place, length: int) -> bytes:
    """Size, tag, and `length` bytes of beginning and end: to read a terabyte takes hours."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(length)
        file.seek(max(0, size - length))
        return f"{size} {store_tag(path)}".encode() + head + file.read()


def read_file(path: Place, shown: str, max_bytes: int) -> bytes:
    """A regular file's bytes; raises Rejection when there are none to have."""
    try:
        if isinstance(path, StorePath):
            return _read_object(path, shown, max_bytes)
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise Rejection("unreadable_file", f"{shown}: not a regular file")
        if status.st_size > max_bytes:
            raise _too_many(shown, status.st_size, max_bytes)
        return path.read_bytes()
    except FileNotFoundError as error:
        raise Rejection("missing_file", f"{shown}: no such file") from error
    except OSError as error:
        raise Rejection("unreadable_file", f"{shown}: {error.strerror}") from error


def _read_object(path: StorePath, shown: str, max_bytes: int) -> bytes:
    """In one request; what keeps the store from answering ends the work: it is no row's fault."""
    data = path.read_bytes(max_bytes + 1)
    if len(data) > max_bytes:
        raise _too_many(shown, path.stat().st_size, max_bytes)
    return data


def _too_many(shown: str, size: int, cap: int) -> Rejection:
    return Rejection("too_many_bytes", f"{shown}: {size} bytes, the cap is {cap}")
