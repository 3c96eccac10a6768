"""One case: a damaged file made from (seed, kind, number), and what becomes of it."""

from __future__ import annotations

import random
from pathlib import Path

from base.errors import NothingUsable, UserError
from benchmarks.soak.answers import fetched
from benchmarks.soak.readers import READ
from benchmarks.soak.seeds import ANSWERS, PICTURES, SUFFIX
from data_pipeline import sources
from data_pipeline.config import Mode, PrepareConfig
from data_pipeline.pixels import encode
from data_pipeline.row import Rejection
from data_pipeline.schema.dataset import REASONS

_MODES: tuple[Mode, ...] = ("center_crop", "keep_ratio", "keep_ratio_largest", "border", "none")
_SIZE = 64
_MAX_BYTES = 32 << 20
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x2D)  # the last is a minus
_WORDS = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\1\0\0")


def damaged(kind: str, whole: list[bytes], seed: int, number: int) -> bytes:
    """The file of case `number`: one of `whole` with one to a dozen faults."""
    chance = random.Random(f"{seed} {kind} {number}")
    data = bytearray(chance.choice(whole))
    for _ in range(chance.choice((1, 1, 1, 2, 3, 5, 12))):
        if data:
            _damage(data, chance, whole)
    return bytes(data)


def _damage(data: bytearray, chance: random.Random, whole: list[bytes]) -> None:
    # Headers are short and decide much: half of the faults are in the first hundred bytes.
    place = chance.randrange(min(len(data), chance.choice((100, len(data)))))
    end = min(len(data), place + chance.choice((1, 2, 4, 16, 256, 4096)))
    kind = chance.randrange(9)
    if kind == 0:
        data[place] ^= 1 << chance.randrange(8)
    elif kind == 1:
        data[place] = chance.choice((*_NUMBERS, chance.randrange(256)))
    elif kind == 2:
        word = chance.choice(_WORDS)
        data[place : place + 4] = word
    elif kind == 3:
        del data[place:end]
    elif kind == 4:
        data[place:place] = data[place:end]
    elif kind == 5:
        del data[place:]
    elif kind == 6:
        data[place:end] = bytes(end - place)
    elif kind == 7:
        data[place:end] = chance.randbytes(end - place)
    else:
        other = chance.choice(whole)
        start = chance.randrange(len(other))
        data[place:end] = other[start : start + end - place]


def outcome(kind: str, data: bytes, number: int, folder: Path) -> str:
    """`kept`, a reason of REASONS, `rows`, or `refused` with one line; all else is raised."""
    if kind in PICTURES:
        return _picture(data, number)
    if kind in READ:
        return READ[kind](data, folder)
    if kind in ANSWERS:
        return fetched(data, number)
    return _input(data, folder / f"input{SUFFIX[kind]}{'.gz' if data[:2] == _GZIP else ''}")


_GZIP = b"\x1f\x8b"


def _picture(data: bytes, number: int) -> str:
    """Through all that a row's picture goes through, to the JPEG that would be stored."""
    mode = _MODES[number % len(_MODES)]
    keep = number % 2 == 1
    config = PrepareConfig(image_size=_SIZE, mode=mode, keep_jpeg=keep, only_if_bigger=keep)
    try:
        jpeg, meta, stored = encode(data, config)
    except Rejection as why:
        return _known(why)
    if stored.dtype != "uint8" or stored.shape != (meta["height"], meta["width"], 4):
        raise AssertionError(f"no picture: {stored.dtype} {stored.shape}, {meta}")
    if not jpeg.startswith(b"\xff\xd8") or not jpeg.endswith(b"\xff\xd9"):
        raise AssertionError(f"no JPEG: {jpeg[:4].hex()} … {jpeg[-4:].hex()}")
    return "kept"


def _known(why: Rejection) -> str:
    if why.reason not in REASONS:
        raise AssertionError(f"unknown reason {why.reason}")
    return why.reason


def _input(data: bytes, path: Path) -> str:
    """Scanned and read to its end, as planning and a task would."""
    path.write_bytes(data)
    try:
        found = sources.scan([path], path.parent)
        for source in found:
            rows = list(sources.read(source, 0, source.rows, _MAX_BYTES))
            assert len(rows) == source.rows, f"{len(rows)} rows of {source.rows}"
            for row in rows:
                if row.problem is not None:
                    _known(row.problem)
    except (UserError, NothingUsable) as error:
        if "\n" in str(error):
            raise AssertionError("more than one line") from error
        return "refused"
    return "rows"
