"""Reads a synthetic scene back out of a picture by image analysis alone.

Whatever cannot be told is None, with the reason in `Reading.why`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import combinations

import cv2
import numpy as np
from numpy.typing import NDArray

from data_pipeline.schema import scenes as vocabulary

from .canvas import (
    SIDE,
    Floats,
    Mask,
    canonical,
    components_of,
    distance_to,
    nearest_word,
    read_background,
    roughness,
)
from .signs import UNKNOWN, ReadSign, read_sign

_ROUGH = 30.0  # median change in grey levels between neighbours above which a picture is noise

# Distances in CIELAB. Palette colours lie at least 32 apart.
_COLOUR_OFF = 30.0
_COLOUR_SPREAD = 26.0

_CLUTTER_AREA = 40
_NO_LETTER = 8  # pixels of clutter; the thinnest letter has 15
_MOST = max(vocabulary.COUNTS)
_SHAPE_FIT = 0.82  # overlap with the best template, intersection over union
_SHAPE_RIVAL = 0.03  # lead over the best template of another shape
_BETWEEN = 0.6  # of the weaker object's contrast: what lies between two objects shows less
_SMALLEST = 0.88  # times the smallest radius that scenes have
_DIRECTION = 1.3  # how many times farther apart along the relation than across it
_LINE, _NO_LINE = 3.0, 2.0  # how many times longer than wide a row is at least, a group at most

_PATCH = 40  # side of the patch in which outlines are compared
_PATCH_RADIUS = 11.0  # radius there of the circle whose area the object has
_BLURS = (0.0, 0.1, 0.2, 0.3)  # softness of the templates, Gaussian sigma in such radii


@dataclass(frozen=True)
class ReadObject:
    """One object as it was read; None where a word could not be told.

    x, y are its centroid and radius is the one that the scenes' objects have (of a circle of equal
    area where the shape is None), as fractions of the side.
    """

    colour: str | None
    shape: str | None
    x: float
    y: float
    radius: float
    why: str = ""


@dataclass(frozen=True)
class Reading:
    """What a picture shows: objects[0] is `relation` objects[1] where there are two.

    Two objects come left to right or top to bottom, so the relation is `left of` or `above`; more
    of them have a layout, and come along a row or column. A picture with lettering has a sign and
    no objects. `clear` says that everything was told; `why` gives the first reason when not.
    """

    background: str | None
    objects: tuple[ReadObject, ...]
    relation: str | None
    clear: bool
    why: str = ""
    layout: str | None = None
    sign: ReadSign | None = None


def read_scene(image: NDArray[np.uint8]) -> Reading:
    """Read a square sRGB picture, uint8 [S, S, 3], of any side.

    The background is the median of the border; the foreground is what differs from it in CIELAB,
    in connected components: letters of a sign, or objects. An object's colour is the median of its
    eroded component, its shape that of the template (the renderer's own outline, at several
    softnesses) that overlaps it most. Raises ValueError for another dtype or form.
    """
    lab = canonical(image)
    ground, background, why = read_background(lab)
    if roughness(image) > _ROUGH:
        background, why = None, "noise"
    distance = distance_to(lab, ground)  # [SIDE, SIDE]
    components, clutter = components_of(distance)
    if len(components) not in (1, 2) or clutter > _NO_LETTER:
        sign = read_sign(image, ground)
        if sign is not None:
            why = why or _why_unreadable(sign)
            return Reading(background, (), None, not why, why, sign=sign)
    if clutter > _CLUTTER_AREA:
        why = why or "clutter beside the objects"
    if len(components) > _MOST:
        return Reading(background, (), None, False, why or f"{len(components)} objects")
    objects = tuple(_read_object(lab, ground, component) for component in components)
    relation = layout = None
    if len(objects) > 1:
        objects, relation, layout = _arranged(objects)
        touching = any(_touch(distance, *pair) for pair in combinations(components, 2))
        why = why or ("objects that touch" if touching else "")
        why = why or ("" if relation or layout else "arrangement between two")
    why = why or ("" if objects else "no object")
    why = why or next((item.why for item in objects if item.why), "")
    why = why or ("an object that is too small" if _too_small(objects) else "")
    return Reading(background, objects, relation, not why, why, layout)


def _why_unreadable(sign: ReadSign) -> str:
    if UNKNOWN in sign.letters:
        return "a letter"
    return "" if sign.colour else "colour of the letters"


def _read_object(lab: Floats, ground: Floats, component: Mask) -> ReadObject:
    core = _core(component)
    colour = np.median(lab[core], axis=0).astype(np.float32)
    even = (distance_to(lab[core], colour) <= _COLOUR_SPREAD).mean() >= 0.85
    name = nearest_word(colour, _COLOUR_OFF) if even else None
    if name not in vocabulary.COLOURS:
        name = None
    alpha = _alpha(lab, ground, colour, component)
    area = max(float(alpha.sum()), 1.0)
    rows, columns = np.arange(SIDE, dtype=np.float32)[:, None], np.arange(SIDE, dtype=np.float32)
    x, y = float((alpha * columns).sum()) / area, float((alpha * rows).sum()) / area
    radius = float(np.sqrt(area / np.pi))
    shape = _read_shape(alpha, x, y, radius)
    if shape:
        radius *= float(np.sqrt(np.pi / vocabulary.shape_area(shape)))
    why = "" if name else "colour of an object" if even else "object of several colours"
    why = why or ("" if shape else "shape of an object")
    return ReadObject(name, shape, (x + 0.5) / SIDE, (y + 0.5) / SIDE, radius / SIDE, why)


def _touch(distance: Floats, first: Mask, second: Mask) -> bool:
    """Whether two components are neighbours, or no background lies between their middles."""
    around = cv2.dilate(first.astype(np.uint8), np.ones((5, 5), np.uint8))
    if (around[second] > 0).any():
        return True
    weaker = min(float(np.median(distance[mask])) for mask in (first, second))
    start, end = (np.argwhere(mask).mean(0) for mask in (first, second))
    way = np.rint(np.linspace(start, end, SIDE)).astype(np.intp)  # [SIDE, 2] rows and columns
    return bool(distance[way[:, 0], way[:, 1]].min() > _BETWEEN * weaker)


def _too_small(objects: tuple[ReadObject, ...]) -> bool:
    """Whether one is clearly smaller than the smallest that is drawn: the rest of an erased one."""
    radii = {1: vocabulary.SIZES.values(), 2: vocabulary.PAIR_SIZES.values()}
    crowd = (vocabulary.CROWD_RADIUS, *vocabulary.ROW_RADII.values())
    smallest = min(low for low, _ in radii.get(len(objects), crowd))
    return any(item.radius < _SMALLEST * smallest for item in objects)


def _core(component: Mask) -> Mask:
    """The component without its rim, where the colours of object and background mix."""
    mask = component.astype(np.uint8)
    for steps in (2, 1):
        core: Mask = cv2.erode(mask, np.ones((3, 3), np.uint8), iterations=steps) > 0
        if core.sum() >= 8:
            return core
    return component


def _alpha(lab: Floats, ground: Floats, colour: Floats, component: Mask) -> Floats:
    """How far each pixel in and just around a component is object rather than background."""
    way = colour - ground
    along = ((lab - ground) @ way) / max(float(way @ way), 1.0)
    around = cv2.dilate(component.astype(np.uint8), np.ones((5, 5), np.uint8))
    alpha: Floats = np.asarray(np.clip(along, 0, 1) * around, np.float32)
    return alpha


def _read_shape(alpha: Floats, x: float, y: float, radius: float) -> str | None:
    """The shape whose template overlaps best, unless it fits badly or another fits as well."""
    scale, middle = _PATCH_RADIUS / radius, (_PATCH - 1) / 2
    place = np.array([[scale, 0, middle - scale * x], [0, scale, middle - scale * y]], np.float64)
    patch = cv2.warpAffine(alpha, place, (_PATCH, _PATCH), flags=cv2.INTER_LINEAR)
    bank = _templates()  # [shapes, blurs, P, P]
    overlap = np.minimum(bank, patch).sum((2, 3)) / np.maximum(bank, patch).sum((2, 3))
    best = overlap.max(1)  # [shapes]
    second, first = np.argsort(best)[-2:]
    if best[first] < _SHAPE_FIT or best[first] - best[second] < _SHAPE_RIVAL:
        return None
    return vocabulary.SHAPES[int(first)]


@cache
def _templates() -> Floats:
    """The renderer's outlines of one area, sharp and blurred: [shapes, blurs, PATCH, PATCH]."""
    at = np.arange(_PATCH, dtype=np.float32) - np.float32((_PATCH - 1) / 2)
    bank: list[Floats] = []
    for shape in vocabulary.SHAPES:
        radius = _PATCH_RADIUS * float(np.sqrt(np.pi / vocabulary.shape_area(shape)))
        sharp = vocabulary.coverage(shape, at, at, radius)
        for blur in _BLURS:
            sigma = blur * _PATCH_RADIUS
            soft = cv2.GaussianBlur(sharp, (0, 0), sigma) if sigma else sharp
            bank.append(np.asarray(soft, np.float32))
    stacked: Floats = np.stack(bank)
    return stacked.reshape(len(vocabulary.SHAPES), len(_BLURS), _PATCH, _PATCH)


def _arranged(
    objects: tuple[ReadObject, ...],
) -> tuple[tuple[ReadObject, ...], str | None, str | None]:
    """Objects in their order in space, and the relation of two or the layout of more.

    From left to right or top to bottom, along whichever they lie farther apart.
    """
    (low_x, high_x), (low_y, high_y) = (
        (min(places), max(places)) for places in zip(*((o.x, o.y) for o in objects), strict=True)
    )
    across, down = high_x - low_x, high_y - low_y
    lying = across >= down
    ordered = tuple(sorted(objects, key=lambda item: item.x if lying else item.y))
    longer, shorter = max(across, down), min(across, down)
    if len(objects) == 2:
        clear = longer >= _DIRECTION * shorter
        return ordered, ("left of" if lying else "above") if clear else None, None
    if longer >= _LINE * shorter:
        return ordered, None, "row" if lying else "column"
    return ordered, None, "group" if longer <= _NO_LINE * shorter else None
