"""Fitting a picture into the stored size: which part of it, how large, with which filter."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from data_pipeline.config import Mode

Pixels = npt.NDArray[np.uint8]  # [H, W, 3], RGB
_WHITE = (255, 255, 255)


def needed_sides(mode: Mode, size: int, width: int, height: int) -> tuple[int, int]:
    """The least (width, height) that a decoder must give so that nothing is enlarged later.

    0 sets no bound on that side; (width, height) asks for every pixel.
    """
    if mode == "none":
        return width, height
    if mode in ("center_crop", "keep_ratio"):
        return size, size
    return (size, 0) if width >= height else (0, size)


def fit(picture: Pixels, mode: Mode, size: int, only_if_bigger: bool) -> Pixels:
    """The picture as it is stored.

    center_crop: the middle square, `size` x `size`. keep_ratio: the shorter side becomes `size`.
    keep_ratio_largest: the longer one does. border: the same, centred on a white square.
    none: as it is. `only_if_bigger` leaves what is small enough at its own scale.
    """
    if mode == "none":
        return picture
    if mode == "center_crop":
        return _scale_to(_middle(picture), size, size, only_if_bigger)
    scaled = _scale_to(
        picture, *_scaled_sides(mode, size, picture.shape[1], picture.shape[0]), only_if_bigger
    )
    return _on_square(scaled, size) if mode == "border" else scaled


def largest_sides(mode: Mode, size: int, width: int, height: int) -> tuple[int, int]:
    """(width, height) that `fit` may hold of a picture of these sides; a thin one can grow long."""
    if mode in ("none", "center_crop"):
        return (width, height) if mode == "none" else (size, size)
    scaled = _scaled_sides(mode, size, width, height)
    return max(width, scaled[0]), max(height, scaled[1])


def _scaled_sides(mode: Mode, size: int, width: int, height: int) -> tuple[int, int]:
    side = min(width, height) if mode == "keep_ratio" else max(width, height)
    return max(1, round(width * size / side)), max(1, round(height * size / side))


def _middle(picture: Pixels) -> Pixels:
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return picture[top : top + side, left : left + side]


def _scale_to(picture: Pixels, width: int, height: int, only_if_bigger: bool) -> Pixels:
    """Area averaging downwards, bicubic upwards."""
    picture = np.ascontiguousarray(picture)
    old_height, old_width = picture.shape[:2]
    if (old_width, old_height) == (width, height):
        return picture
    if old_width < width or old_height < height:
        return picture if only_if_bigger else _resized(picture, width, height, cv2.INTER_CUBIC)
    return _resized(picture, width, height, cv2.INTER_AREA)


def _resized(picture: Pixels, width: int, height: int, method: int) -> Pixels:
    resized: Any = cv2.resize(picture, (width, height), interpolation=method)
    return np.asarray(resized, np.uint8)


def _on_square(picture: Pixels, size: int) -> Pixels:
    height, width = picture.shape[:2]
    square = np.empty((size, size, 3), np.uint8)
    square[:] = _WHITE
    top, left = (size - height) // 2, (size - width) // 2
    square[top : top + height, left : left + width] = picture
    return square
