"""A tar's headers, read by a hand that trusts none of them.

The standard library's reader stops without a word at a damaged header, reads any declared length of
names into memory and raises what it likes; here damage is told, and nothing is large.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedIOBase

BLOCK = 512
_LONGEST = 1 << 20  # bytes of a PAX or GNU header's body
_AFTER = 1 << 20  # bytes behind the end that are looked at
_LARGEST = 1 << 60  # bytes of a member, whatever a header may say
_ZERO = bytes(BLOCK)
_OCTAL = re.compile(rb"[0-7]+")
_REGULAR = (b"0", b"\0", b"7")
_NO_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders, pipes
_PAX, _PAX_FOR_ALL, _GNU_NAME, _GNU_SPARSE = b"x", b"g", b"L", b"S"


class Damaged(ValueError):
    """From here on the tar cannot be read; the message says where."""


@dataclass(frozen=True)
class Member:
    """A regular file: `size` bytes at `offset`, perhaps beyond the file's end."""

    name: str
    offset: int
    size: int


def members(file: BufferedIOBase, total: int) -> Iterator[Member]:
    """The regular files of a tar of `total` bytes (ustar, PAX, GNU), in order.

    Links and the like are passed over, and so are sparse files, which hold no bytes of a picture.

    Raises:
        Damaged: a header is none, is cut, or says what cannot be.
    """
    place, said = 0, dict[bytes, bytes]()  # what the next member's extended headers say
    while place < total:
        header = _read(file, place, BLOCK)
        if header == _ZERO:
            _require_nothing_after(file, place, total)
            return
        _check(header, place)
        kind, size = header[156:157], _number(header[124:136], place)
        data = place + BLOCK
        if kind in (_PAX, _PAX_FOR_ALL, _GNU_NAME):
            body = _body(file, data, size, place)
            if kind == _PAX:
                said |= _records(body, place)
            elif kind == _GNU_NAME:
                said[b"path"] = body.split(b"\0", 1)[0]
        else:
            size = _declared(said.get(b"size"), size, place)
            sparse = any(key.startswith(b"GNU.sparse") for key in said)
            if kind in _REGULAR and not sparse:
                yield Member(_name(header, said), data, size)
            elif kind == _GNU_SPARSE:
                data = _after_map(file, header, data)
            elif kind in _NO_DATA:
                size = 0
            said = {}
        place = data + size + -size % BLOCK
    if said:
        raise Damaged(f"it ends behind a header's first part, at byte {total}")


def _read(file: BufferedIOBase, place: int, count: int) -> bytes:
    file.seek(place)
    data = file.read(count)
    if len(data) != count:
        raise Damaged(f"it ends inside a header at byte {place}")
    return data


def _check(header: bytes, place: int) -> None:
    """A header's checksum: the sum of its bytes, its own field as spaces, signed or not."""
    stored = _number(header[148:156], place)
    rest = header[:148] + header[156:]
    unsigned = sum(rest) + 8 * ord(" ")
    if stored not in (unsigned, unsigned - 256 * sum(byte > 127 for byte in rest)):
        raise Damaged(f"no header at byte {place}")


def _number(field: bytes, place: int) -> int:
    """Octal text, or GNU's base 256."""
    if field[0] == 0x80:
        number = int.from_bytes(field[1:], "big")
        if number > _LARGEST:
            raise Damaged(f"a size of {number} at byte {place}")
        return number
    digits = field.split(b"\0", 1)[0].strip() or b"0"
    if not _OCTAL.fullmatch(digits):  # int() takes a sign too, which would lead backwards
        raise Damaged(f"no header at byte {place}")
    return int(digits, 8)


def _declared(said: bytes | None, size: int, place: int) -> int:
    """A PAX header's size where there is one."""
    if said is None:
        return size
    if not said.isdigit() or len(said) > 18:
        raise Damaged(f"a size of {said[:20]!r} at byte {place}")
    return int(said)


def _body(file: BufferedIOBase, data: int, size: int, place: int) -> bytes:
    if size > _LONGEST:
        raise Damaged(f"a header of {size} bytes at byte {place}")
    return _read(file, data, size)


def _records(body: bytes, place: int) -> dict[bytes, bytes]:
    """A PAX header's `length key=value` lines."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(body):
        digits, _, _ = body[at : at + 20].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        line = body[at + len(digits) + 1 : at + length]
        key, equals, value = line.partition(b"=")
        if not equals or not value.endswith(b"\n"):
            raise Damaged(f"a PAX header that is none at byte {place}")
        found[key] = value[:-1]
        at += length
    return found


def _name(header: bytes, said: dict[bytes, bytes]) -> str:
    path = said.get(b"path")
    if path is None:
        path = header[:100].split(b"\0", 1)[0]
        prefix = header[345:500].split(b"\0", 1)[0]
        if prefix and header[257:263] == b"ustar\0":
            path = prefix + b"/" + path
    return path.decode("utf-8", "replace")


def _after_map(file: BufferedIOBase, header: bytes, data: int) -> int:
    """Where a GNU sparse file's bytes begin, behind the blocks that say where they belong."""
    more = header[482]
    while more:
        more = _read(file, data, BLOCK)[504]
        data += BLOCK
    return data


def _require_nothing_after(file: BufferedIOBase, place: int, total: int) -> None:
    file.seek(place)
    if any(file.read(_AFTER)):
        raise Damaged(f"its end is at byte {place}, and {total - place} bytes follow it")
