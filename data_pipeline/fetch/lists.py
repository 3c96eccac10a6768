"""Opt-out lists: files of domains and of hashes that do not want to be fetched."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from base.errors import UserError
from base.files import sha256_file
from data_pipeline.fetch.config import LISTS, FetchConfig

_DIGEST = re.compile(r"[0-9a-f]{32}|[0-9a-f]{64}")
_DOMAIN = re.compile(r"[^\s/:@?,;]+")


def read_domains(path: Path | None) -> frozenset[str]:
    """The domains of a list, one a line; `#` begins a comment.

    Raises:
        UserError: it cannot be read, or a line is no domain.
    """
    return frozenset(_lines(path, _DOMAIN, "a domain, such as example.org"))


def read_hashes(path: Path | None) -> frozenset[str]:
    """The md5 and sha256 of a list in lower case, one a line; `#` begins a comment.

    Raises:
        UserError: it cannot be read, or a line is no digest.
    """
    return frozenset(_lines(path, _DIGEST, "md5 or sha256 in hexadecimal"))


def _lines(path: Path | None, form: re.Pattern[str], expected: str) -> Iterator[str]:
    if path is None:
        return
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text") from error
    for number, line in enumerate(text.splitlines(), 1):
        found = line.partition("#")[0].strip().lower()
        if found and not form.fullmatch(found):
            raise UserError(f"{path}: line {number}: got {found[:80]!r}, expected {expected}")
        if found:
            yield found


def settled(config: FetchConfig) -> FetchConfig:
    """The config with its lists' paths absolute, for workers that run elsewhere.

    Raises:
        UserError: a list cannot be used.
    """
    read_domains(config.opt_out_domains)
    read_hashes(config.opt_out_hashes)
    paths = {name: path.absolute() for name, path in _paths(config)}
    return config.model_copy(update=paths) if paths else config


def digests(config: FetchConfig) -> dict[str, str]:
    """SHA-256 of each list that is used, by the setting's name."""
    return {name: sha256_file(path) for name, path in _paths(config)}


def stamps(config: FetchConfig) -> tuple[tuple[int, int], ...]:
    """Time and size of each list: they change when it does."""
    found = (path.stat() for _, path in _paths(config))
    return tuple((status.st_mtime_ns, status.st_size) for status in found)


def _paths(config: FetchConfig) -> Iterator[tuple[str, Path]]:
    for name in LISTS:
        path: Path | None = getattr(config, name)
        if path is not None:
            yield name, path
