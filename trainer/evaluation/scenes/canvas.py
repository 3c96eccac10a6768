"""A picture brought to one size and to CIELAB; its background, and what stands out from it."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from data_pipeline.schema import scenes as vocabulary

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

SIDE = 64  # objects are read in pictures of this side: area-averaged down or cubic up
_RING = 2  # width of the border that the background is read from

# Distances in CIELAB. Palette colours lie at least 32 apart.
_GROUND_SPREAD = 16.0
_GROUND_OFF = 18.0
FOREGROUND = 16.0
OBJECT_AREA = 40  # pixels; a small cross of a pair has 170, of a crowd 65
_COLOUR_RIVAL = 0.75  # the nearest colour must be this much nearer than the second


def canonical(image: NDArray[np.uint8], side: int = SIDE) -> Floats:
    """The picture in CIELAB, mild noise taken away. [side, side, 3]

    Raises ValueError for another dtype or form.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image: got {image.dtype} {image.shape}, expected uint8 [S, S, 3]")
    had = image.shape[0]
    if image.shape[1] != had:
        raise ValueError(f"image: got {image.shape[1]} x {had} pixels, expected a square")
    how = cv2.INTER_AREA if had > side else cv2.INTER_CUBIC
    resized = cv2.resize(image, (side, side), interpolation=how)
    return _lab(np.asarray(cv2.medianBlur(resized, 3), np.uint8))


def roughness(image: NDArray[np.uint8]) -> float:
    """Median change between neighbouring pixels, in grey levels."""
    green = image[:: 1 + image.shape[0] // 128, :, 1].astype(np.int16)
    return float(np.median(np.abs(np.diff(green, axis=1))))


def _lab(rgb: NDArray[np.uint8]) -> Floats:
    lab: Floats = cv2.cvtColor(rgb.astype(np.float32) / np.float32(255), cv2.COLOR_RGB2LAB)
    return lab


def distance_to(lab: Floats, colour: Floats) -> Floats:
    distance: Floats = np.sqrt(np.square(lab - colour).sum(-1))
    return distance


@cache
def _palette() -> tuple[tuple[str, ...], Floats]:
    """Names and CIELAB values of the backgrounds, then of the colours: [N, 3]."""
    words = vocabulary.BACKGROUNDS | vocabulary.COLOURS
    return tuple(words), _lab(np.array([list(words.values())], np.uint8))[0]


def nearest_word(colour: Floats, limit: float) -> str | None:
    """The palette's nearest word, unless it is far off or a second one is nearly as near."""
    names, values = _palette()
    distance = distance_to(values, colour)
    first, second = np.argsort(distance)[:2]
    if distance[first] > limit or distance[first] > _COLOUR_RIVAL * distance[second]:
        return None
    return names[int(first)]


def read_background(lab: Floats) -> tuple[Floats, str | None, str]:
    """The border's median colour [3], its name, and why there is none."""
    inner = slice(_RING, SIDE - _RING)
    border = np.ones((SIDE, SIDE), bool)
    border[inner, inner] = False
    ring = lab[border]
    ground = np.median(ring, axis=0).astype(np.float32)
    if (distance_to(ring, ground) > _GROUND_SPREAD).mean() > 0.15:
        return ground, None, "background of several colours"
    name = nearest_word(ground, _GROUND_OFF)
    if name not in vocabulary.BACKGROUNDS:
        return ground, None, "background of no known colour"
    return ground, name, ""


def components_of(distance: Floats) -> tuple[list[Mask], int]:
    """Connected foreground regions as masks, and the area of the crumbs between them.

    The threshold is half of the strongest contrast nearby, so that the soft rims of two objects
    do not join, and never less than FOREGROUND.
    """
    near = cv2.dilate(distance, np.ones((9, 9), np.uint8))
    mask = (distance > np.maximum(FOREGROUND, 0.5 * near)).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    areas = stats[:, cv2.CC_STAT_AREA]
    kept = [label for label in range(1, count) if areas[label] >= OBJECT_AREA]
    clutter = int(mask.sum()) - sum(int(areas[label]) for label in kept)
    return [labels == label for label in kept], clutter
