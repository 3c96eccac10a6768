"""One input row, as every source yields it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class Rejection(Exception):
    """Why a row is not kept: a word of schema.dataset.REASONS and a sentence."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = " ".join(message.split())


def utf8(text: str) -> str:
    """The text without lone surrogates, which UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode()


@dataclass(frozen=True)
class Row:
    """A picture's bytes with its captions, or the reason why there are none.

    `image` None: it is behind `url`, still to be fetched.
    """

    source_key: str
    image: bytes | None = b""
    captions: tuple[str, ...] = ()
    url: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)  # the input's other columns
    problem: Rejection | None = None
    expected: Mapping[str, str] = field(default_factory=dict)  # md5, sha256: hex digits of `image`


def rejected_row(position: int, row: Row, problem: Rejection) -> dict[str, Any]:
    """A row of rejected/ (schema.dataset.REJECTED_SCHEMA)."""
    return {
        "row": position,
        "source_key": utf8(row.source_key),
        "url": None if row.url is None else utf8(row.url),
        "reason": problem.reason,
        "message": utf8(problem.message),
    }
