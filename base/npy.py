"""The header of an .npy file, read without Python's parser.

numpy's own reading goes through ast.literal_eval, which in Python 3.11 fails now and then when
several threads are in it ("AST constructor recursion depth mismatch"), as a loader and a verifier
have several.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_MAGIC = b"\x93NUMPY\x01\x00"  # version 1.0; later ones are for headers beyond 64 KiB, and names
_TEXT = re.compile(
    rb"\{'descr': '([^']*)', 'fortran_order': (True|False), 'shape': \(([0-9, ]*)\), \} *\n"
)


class NpyHeader(NamedTuple):
    """What a header says, and where the numbers begin."""

    dtype: str  # as numpy writes it: "<f2"
    fortran: bool
    shape: tuple[int, ...]
    offset: int


def npy_header(data: bytes) -> NpyHeader:
    """The header at the beginning of `data`, as numpy writes it.

    Raises:
        ValueError: there is none, or it is cut off, or another writer's.
    """
    begin = len(_MAGIC) + 2
    if not data.startswith(_MAGIC) or len(data) < begin:
        raise ValueError("does not begin as .npy files of version 1.0 do")
    offset = begin + int.from_bytes(data[len(_MAGIC) : begin], "little")
    text = _TEXT.fullmatch(data[begin:offset])
    if text is None:
        raise ValueError(f"has the header {data[begin:offset][:100]!r}")
    dtype, fortran, sides = text.groups()
    shape = tuple(int(side) for side in sides.decode().split(",") if side.strip())
    return NpyHeader(dtype.decode("latin1"), fortran == b"True", shape, offset)
