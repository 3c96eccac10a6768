"""JPEG to pixels: decoded no larger than needed, then brought to the wanted side."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from base.errors import UserError

Pixels = NDArray[np.uint8]

cv2.setNumThreads(0)  # the loader's own thread or process is the unit of parallelism


def decode_square(data: bytes, side: int, name: Callable[[], str]) -> Pixels:
    """The middle square of a JPEG, scaled to [side, side, 3].

    The decoder drops frequencies first (factors of 1/8 in the DCT), to the smallest size that is
    still >= `side`; an area average does the rest. Small pictures are enlarged (bicubic).

    Raises:
        UserError: the bytes are no picture; `name` says which, and is asked only then.
    """
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=side, min_width=side)
    except ValueError as error:
        raise UserError(f"{name()}: not a readable JPEG ({error}); verify the data") from error
    return square(pixels, side)


def middle(height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of the largest square in the middle."""
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    return slice(top, top + short), slice(left, left + short)


def square(pixels: Pixels, side: int) -> Pixels:
    """The middle square of pixels [H, W, 3], scaled to [side, side, 3]."""
    pixels = pixels[middle(*pixels.shape[:2])]
    if pixels.shape[0] == side:
        return pixels
    how = cv2.INTER_AREA if pixels.shape[0] > side else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(pixels, (side, side), interpolation=how), dtype=np.uint8)
