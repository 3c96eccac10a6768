"""The letters of the scenes' signs: outlines drawn with one stroke, as geometry.

No font file and no font library: a letter is a set of straight pieces, every pixel's share of it
follows from the distance to the nearest, and so the same pixels come out on every machine.
Lengths are in x-heights, y downwards; x is 0 at a letter's leftmost line, y is 0 at the base line.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Point = tuple[float, float]
Line = tuple[Point, ...]  # straight pieces from point to point; one point alone is a dot

HALF_STROKE = 0.12
LETTER_GAP = 0.34  # between the outlines of two letters: soft pictures keep them apart
_TALL, _DEEP = -1.5, 0.5  # how high b, d, f, h, k, l reach, and how low g, j, p, q, y
_TURN = 20  # degrees of a curve that one straight piece stands for


def _curve(x: float, y: float, across: float, down: float, start: int, end: int) -> Line:
    """A part of an ellipse about (x, y), clockwise from `start` to `end` (or back), 0 to the right.

    Rounded, so that the last digits of a machine's cosine do not matter.
    """
    steps = max(1, abs(end - start) // _TURN)
    angles = (math.radians(start + (end - start) * step / steps) for step in range(steps + 1))
    return tuple(
        (round(x + across * math.cos(a), 4), round(y + down * math.sin(a), 4)) for a in angles
    )


_BOWL = _curve(0.42, -0.5, 0.42, 0.5, 0, 360)
_ARCH = (*_curve(0.4, -0.58, 0.4, 0.42, 180, 360), (0.8, 0.0))

# Every letter from its lines; the curves are centre, half-width, half-height, angles.
LETTERS: dict[str, tuple[Line, ...]] = {
    "a": (
        (*_curve(0.38, -0.66, 0.36, 0.34, 200, 360), (0.74, 0.0)),
        _curve(0.37, -0.29, 0.37, 0.29, 0, 360),
    ),
    "b": (_BOWL, ((0.0, _TALL), (0.0, 0.0))),
    "c": (_curve(0.42, -0.5, 0.42, 0.5, 50, 310),),
    "d": (_BOWL, ((0.84, _TALL), (0.84, 0.0))),
    "e": (((0.0, -0.5), *_curve(0.42, -0.5, 0.42, 0.5, 0, -310)),),
    "f": ((*_curve(0.55, -1.2, 0.3, 0.3, 300, 180), (0.25, 0.0)), ((0.0, -0.9), (0.6, -0.9))),
    "g": (_BOWL, ((0.84, -1.0), *_curve(0.42, 0.14, 0.42, 0.36, 0, 140))),
    "h": (((0.0, _TALL), (0.0, 0.0)), _ARCH),
    "i": (((0.0, -1.0), (0.0, 0.0)), ((0.0, -1.42),)),
    "j": (((0.32, -1.0), *_curve(0.0, 0.18, 0.32, 0.32, 0, 100)), ((0.32, -1.42),)),
    "k": (((0.0, _TALL), (0.0, 0.0)), ((0.0, -0.4), (0.72, -1.0)), ((0.25, -0.6), (0.76, 0.0))),
    "l": (((0.0, _TALL), (0.0, 0.0)),),
    "m": (
        ((0.0, -1.0), (0.0, 0.0)),
        (*_curve(0.32, -0.62, 0.32, 0.38, 180, 360), (0.64, 0.0)),
        (*_curve(0.96, -0.62, 0.32, 0.38, 180, 360), (1.28, 0.0)),
    ),
    "n": (((0.0, -1.0), (0.0, 0.0)), _ARCH),
    "o": (_BOWL,),
    "p": (_BOWL, ((0.0, -1.0), (0.0, _DEEP))),
    "q": (_BOWL, ((0.84, -1.0), (0.84, _DEEP))),
    "r": (((0.0, -1.0), (0.0, 0.0)), _curve(0.4, -0.55, 0.4, 0.45, 180, 310)),
    "s": (
        (
            *_curve(0.35, -0.75, 0.35, 0.25, -30, -270),
            *_curve(0.35, -0.25, 0.35, 0.25, 270, 510)[1:],
        ),
    ),
    "t": (
        ((0.28, -1.4), *_curve(0.54, -0.26, 0.26, 0.26, 180, 60)),
        ((0.0, -1.0), (0.62, -1.0)),
    ),
    "u": (((0.0, -1.0), *_curve(0.4, -0.42, 0.4, 0.42, 180, 0)), ((0.8, -1.0), (0.8, 0.0))),
    "v": (((0.0, -1.0), (0.42, 0.0), (0.84, -1.0)),),
    "w": (((0.0, -1.0), (0.32, 0.0), (0.64, -1.0), (0.96, 0.0), (1.28, -1.0)),),
    "x": (((0.0, -1.0), (0.8, 0.0)), ((0.8, -1.0), (0.0, 0.0))),
    "y": (((0.0, -1.0), (0.42, 0.0)), ((0.84, -1.0), (0.21, _DEEP))),
    "z": (((0.0, -1.0), (0.76, -1.0), (0.0, 0.0), (0.76, 0.0)),),
}


@cache
def _pieces(letter: str) -> NDArray[np.float32]:
    """A letter's straight pieces: from x, from y, to x, to y. [N, 4]"""
    pieces = [
        (*start, *end)
        for line in LETTERS[letter]
        for start, end in zip(line, line[1:] or line, strict=False)
    ]
    return np.array(pieces, np.float32)


@cache
def letter_extent(letter: str) -> tuple[float, float, float, float]:
    """A letter's outline: from x, to x, from y, to y."""
    points = [point for line in LETTERS[letter] for point in line]
    (low_x, low_y), (high_x, high_y) = (
        map(which, zip(*points, strict=True)) for which in (min, max)
    )
    return low_x - HALF_STROKE, high_x + HALF_STROKE, low_y - HALF_STROKE, high_y + HALF_STROKE


def letter_places(word: str) -> tuple[tuple[float, ...], float]:
    """Where each letter's x is 0 when the word begins at 0, and the word's width."""
    places, end = [], 0.0
    for letter in word:
        low, high, _, _ = letter_extent(letter)
        places.append(end - low)
        end += high - low + LETTER_GAP
    return tuple(places), end - LETTER_GAP


def letter_coverage(letter: str, x: Floats, y: Floats, height: float) -> Floats:
    """Share of each pixel that a letter covers, 0 to 1.

    x [W], y [H]: pixel centres relative to the letter's origin, in pixels; height: the x-height in
    pixels. Returns float32 [H, W].
    """
    scale = np.float32(1 / height)
    across, down = (x * scale)[None, :], (y * scale)[:, None]
    nearest = np.full((len(y), len(x)), np.inf, np.float32)
    for from_x, from_y, to_x, to_y in _pieces(letter):
        way_x, way_y = to_x - from_x, to_y - from_y
        length = max(way_x * way_x + way_y * way_y, np.float32(1e-6))
        share = np.clip(((across - from_x) * way_x + (down - from_y) * way_y) / length, 0, 1)
        off_x, off_y = across - from_x - share * way_x, down - from_y - share * way_y
        nearest = np.minimum(nearest, off_x * off_x + off_y * off_y)
    inside = np.float32(HALF_STROKE) - np.sqrt(nearest)
    covered: Floats = np.clip(np.float32(0.5) + inside * np.float32(height), 0, 1)
    return covered
