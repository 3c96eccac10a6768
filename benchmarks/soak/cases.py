"""One case: a damaged file made from (seed, kind, number), and what becomes of it."""

from __future__ import annotations

import random
from pathlib import Path

from base.errors import NothingUsable, UserError
from benchmarks.soak.seeds import PICTURES, SUFFIX
from data_pipeline import resize, sources
from data_pipeline.config import Mode
from data_pipeline.decode import Limits, decode
from data_pipeline.row import Rejection
from data_pipeline.schema.dataset import REASONS

_MODES: tuple[Mode, ...] = ("center_crop", "keep_ratio", "keep_ratio_largest", "border", "none")
_LIMITS = Limits(64_000_000)
_SIZE = 64
_MAX_BYTES = 32 << 20
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF)
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
        return _picture(data, _MODES[number % len(_MODES)])
    return _input(data, folder / f"input{SUFFIX[kind]}{'.gz' if data[:2] == _GZIP else ''}")


_GZIP = b"\x1f\x8b"


def _picture(data: bytes, mode: Mode) -> str:
    try:
        picture = decode(data, _LIMITS, lambda w, h: resize.needed_sides(mode, _SIZE, w, h))
    except Rejection as why:
        return _known(why)
    fitted = resize.fit(picture.pixels, mode, _SIZE, only_if_bigger=False)
    if fitted.dtype != "uint8" or fitted.ndim != 3 or fitted.shape[2] != 3 or not fitted.size:
        raise AssertionError(f"no picture: {fitted.dtype} {fitted.shape}")
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
