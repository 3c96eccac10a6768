"""The order in which windows of a fixed side are painted until a canvas is full."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from base.errors import UserError


class Box(NamedTuple):
    """Pixels [top, bottom) × [left, right)."""

    top: int
    left: int
    bottom: int
    right: int


def painted_windows(canvas: tuple[int, int], known: Box, side: int, step: int) -> Iterator[Box]:
    """Windows of `side` that fill a canvas (height, width) around the rectangle that is known.

    They spread to the right and left first, then down and up, at most `step` pixels at a time, so
    each shows at least `side` - `step` rows or columns of what is there already. What is known
    stays a rectangle.

    Raises:
        UserError: the known part is no part of the canvas, or too small to go on from.
    """
    height, width = canvas
    inside = 0 <= known.top < known.bottom <= height and 0 <= known.left < known.right <= width
    if not inside or min(height, width) < side:
        raise UserError(f"canvas: got {width}×{height}, expected at least {side}×{side} pixels")
    if known.bottom - known.top < side or known.right - known.left < side:
        raise UserError(f"picture: expected at least {side}×{side} pixels to go on from")
    top, left, bottom, right = known
    while right < width:
        right = min(right + step, width)
        yield from _column(top, bottom, right - side, side, step)
    while left > 0:
        left = max(left - step, 0)
        yield from _column(top, bottom, left, side, step)
    while bottom < height:
        bottom = min(bottom + step, height)
        yield from _row(left, right, bottom - side, side, step)
    while top > 0:
        top = max(top - step, 0)
        yield from _row(left, right, top, side, step)


def _column(top: int, bottom: int, left: int, side: int, step: int) -> Iterator[Box]:
    for begin in _begins(top, bottom, side, step):
        yield Box(begin, left, begin + side, left + side)


def _row(left: int, right: int, top: int, side: int, step: int) -> Iterator[Box]:
    for begin in _begins(left, right, side, step):
        yield Box(top, begin, top + side, begin + side)


def _begins(first: int, last: int, side: int, step: int) -> list[int]:
    """Where windows begin that cover [first, last), `step` apart but for the last one."""
    return [*range(first, last - side, step), last - side]
