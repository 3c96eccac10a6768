"""The verifier: reads a synthetic scene back out of a picture by image analysis alone.

Nothing here is learned and nothing sees the caption: a picture is read first and compared with
the truth afterwards. Whatever cannot be told is None, with the reason in `Reading.why`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations

import cv2
import numpy as np
from numpy.typing import NDArray

from data_pipeline.schema import scenes as vocabulary
from data_pipeline.schema.scenes import Scene

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

SIDE = 64  # pictures of any size are read at this one: area-averaged down or cubic up
_RING = 2  # width of the border that the background is read from
_ROUGH = 30.0  # median change in grey levels between neighbours above which a picture is noise

# Distances in CIELAB. Palette colours lie at least 32 apart.
_GROUND_SPREAD = 16.0
_GROUND_OFF = 18.0
_FOREGROUND = 16.0
_COLOUR_OFF = 30.0
_COLOUR_SPREAD = 26.0
_COLOUR_RIVAL = 0.75  # the nearest colour must be this much nearer than the second

_OBJECT_AREA = 40  # pixels; a small cross of a pair has 170
_CLUTTER_AREA = 40
_SHAPE_FIT = 0.82  # overlap with the best template, intersection over union
_SHAPE_RIVAL = 0.03  # lead over the best template of another shape
_BETWEEN = 0.6  # of the weaker object's contrast: what lies between two objects shows less
_SMALLEST = 0.88  # times the smallest radius that scenes have
_DIRECTION = 1.3  # how many times farther apart along the relation than across it

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

    Objects come left to right or top to bottom, so the relation is `left of` or `above`. `clear`
    says that everything was told; `why` gives the first reason when not.
    """

    background: str | None
    objects: tuple[ReadObject, ...]
    relation: str | None
    clear: bool
    why: str = ""


def read_scene(image: NDArray[np.uint8]) -> Reading:
    """Read a square sRGB picture, uint8 [S, S, 3], of any side.

    The background is the median of the border; the foreground is what differs from it in CIELAB,
    in connected components; an object's colour is the median of its eroded component, its shape
    that of the template (the renderer's own outline, at several softnesses) that overlaps it most.
    Raises ValueError for another dtype or form.
    """
    lab, rough = _canonical(image)
    ground, background, why = _read_background(lab)
    if rough > _ROUGH:
        background, why = None, "noise"
    distance = _distance(lab, ground)  # [SIDE, SIDE]
    components, clutter = _components(distance)
    if clutter > _CLUTTER_AREA:
        why = why or "clutter beside the objects"
    if len(components) > 2:
        return Reading(background, (), None, False, why or f"{len(components)} objects")
    objects = tuple(_read_object(lab, ground, component) for component in components)
    relation = None
    if len(objects) == 2:
        objects, relation = _ordered(objects)
        why = why or ("objects that touch" if _touch(distance, *components) else "")
        why = why or ("" if relation else "relation between two directions")
    why = why or ("" if objects else "no object")
    why = why or next((item.why for item in objects if item.why), "")
    why = why or ("an object that is too small" if _too_small(objects) else "")
    return Reading(background, objects, relation, not why, why)


def _canonical(image: NDArray[np.uint8]) -> tuple[Floats, float]:
    """CIELAB picture [SIDE, SIDE, 3] and the roughness of the original in grey levels."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image: got {image.dtype} {image.shape}, expected uint8 [S, S, 3]")
    side = image.shape[0]
    if image.shape[1] != side:
        raise ValueError(f"image: got {image.shape[1]} x {side} pixels, expected a square")
    green = image[:: 1 + side // 128, :, 1].astype(np.int16)
    rough = float(np.median(np.abs(np.diff(green, axis=1))))
    how = cv2.INTER_AREA if side > SIDE else cv2.INTER_CUBIC
    resized = cv2.resize(image, (SIDE, SIDE), interpolation=how)
    return _lab(np.asarray(cv2.medianBlur(resized, 3), np.uint8)), rough


def _lab(rgb: NDArray[np.uint8]) -> Floats:
    lab: Floats = cv2.cvtColor(rgb.astype(np.float32) / np.float32(255), cv2.COLOR_RGB2LAB)
    return lab


def _distance(lab: Floats, colour: Floats) -> Floats:
    distance: Floats = np.sqrt(np.square(lab - colour).sum(-1))
    return distance


@cache
def _palette() -> tuple[tuple[str, ...], Floats]:
    """Names and CIELAB values of the backgrounds, then of the colours: [N, 3]."""
    words = vocabulary.BACKGROUNDS | vocabulary.COLOURS
    return tuple(words), _lab(np.array([list(words.values())], np.uint8))[0]


def _nearest(colour: Floats, limit: float) -> str | None:
    """The palette's nearest word, unless it is far off or a second one is nearly as near."""
    names, values = _palette()
    distance = _distance(values, colour)
    first, second = np.argsort(distance)[:2]
    if distance[first] > limit or distance[first] > _COLOUR_RIVAL * distance[second]:
        return None
    return names[int(first)]


def _read_background(lab: Floats) -> tuple[Floats, str | None, str]:
    """The border's median colour [3], its name, and why there is none."""
    inner = slice(_RING, SIDE - _RING)
    border = np.ones((SIDE, SIDE), bool)
    border[inner, inner] = False
    ring = lab[border]
    ground = np.median(ring, axis=0).astype(np.float32)
    if (_distance(ring, ground) > _GROUND_SPREAD).mean() > 0.15:
        return ground, None, "background of several colours"
    name = _nearest(ground, _GROUND_OFF)
    if name not in vocabulary.BACKGROUNDS:
        return ground, None, "background of no known colour"
    return ground, name, ""


def _components(distance: Floats) -> tuple[list[Mask], int]:
    """Connected foreground regions as masks, and the area of the crumbs between them.

    The threshold is half of the strongest contrast nearby, so that the soft rims of two objects
    do not join, and never less than _FOREGROUND.
    """
    near = cv2.dilate(distance, np.ones((9, 9), np.uint8))
    mask = (distance > np.maximum(_FOREGROUND, 0.5 * near)).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    areas = stats[:, cv2.CC_STAT_AREA]
    kept = [label for label in range(1, count) if areas[label] >= _OBJECT_AREA]
    clutter = int(mask.sum()) - sum(int(areas[label]) for label in kept)
    return [labels == label for label in kept], clutter


def _read_object(lab: Floats, ground: Floats, component: Mask) -> ReadObject:
    core = _core(component)
    colour = np.median(lab[core], axis=0).astype(np.float32)
    even = (_distance(lab[core], colour) <= _COLOUR_SPREAD).mean() >= 0.85
    name = _nearest(colour, _COLOUR_OFF) if even else None
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
    sizes = vocabulary.SIZES if len(objects) == 1 else vocabulary.PAIR_SIZES
    smallest = min(low for low, _ in sizes.values())
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


def _ordered(objects: tuple[ReadObject, ...]) -> tuple[tuple[ReadObject, ...], str | None]:
    """Two objects from left to right or top to bottom, and which of the two it is."""
    first, second = objects
    across, down = abs(second.x - first.x), abs(second.y - first.y)
    if across >= down:
        ordered = tuple(sorted(objects, key=lambda item: item.x))
        return ordered, "left of" if across >= _DIRECTION * down else None
    ordered = tuple(sorted(objects, key=lambda item: item.y))
    return ordered, "above" if down >= _DIRECTION * across else None


# --- against the truth ------------------------------------------------------------------------

_REVERSED = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@dataclass(frozen=True)
class Verdict:
    """What of a picture is right; colour and shape have one entry for each object asked for.

    relation is None for scenes of one object. all_right asks for everything at once: a clear
    reading, the background, exactly the objects asked for with their colours and shapes, and
    their relation.
    """

    background: bool
    relation: bool | None
    colour: tuple[bool, ...]
    shape: tuple[bool, ...]
    all_right: bool


def judge(reading: Reading, truth: Scene) -> Verdict:
    """Compare a reading with the scene that its caption describes.

    Objects are matched so that most colours agree, then most shapes; an object that was not found
    has neither colour nor shape right. The relation is right only if exactly two objects were read
    and the match is the only best one, so that which is which is known. Positions and sizes are
    free.
    """
    match, unique = _match(reading.objects, truth)
    colour = tuple(
        read is not None and read.colour == asked.colour
        for read, asked in zip(match, truth.objects, strict=True)
    )
    shape = tuple(
        read is not None and read.shape == asked.shape
        for read, asked in zip(match, truth.objects, strict=True)
    )
    relation = None
    if truth.relation is not None:
        stated = reading.relation
        if stated is not None and match[0] is reading.objects[1]:
            stated = _REVERSED[stated]
        relation = unique and stated == truth.relation
    background = reading.background == truth.background
    same_number = len(reading.objects) == len(truth.objects)
    whole = reading.clear and same_number and relation is not False
    all_right = whole and background and all(colour) and all(shape)
    return Verdict(background, relation, colour, shape, all_right)


def _match(
    objects: tuple[ReadObject, ...], truth: Scene
) -> tuple[tuple[ReadObject | None, ...], bool]:
    """For each object asked for the one read in its place; whether no other match is as good."""

    def agreement(match: tuple[ReadObject | None, ...]) -> tuple[int, int]:
        pairs = [(r, a) for r, a in zip(match, truth.objects, strict=True) if r is not None]
        return sum(r.colour == a.colour for r, a in pairs), sum(
            r.shape == a.shape for r, a in pairs
        )

    asked = len(truth.objects)
    padded = (*objects, *(None,) * (asked - len(objects)))
    matches = sorted(permutations(padded, asked), key=agreement)
    unique = len(matches) == 1 or agreement(matches[-1]) > agreement(matches[-2])
    return matches[-1], unique


def score(
    verdicts: Sequence[Verdict], unseen: Sequence[bool]
) -> dict[str, dict[str, float | int | None]]:
    """Fractions that are right, for captions whose combinations training has seen and for others.

    unseen: one flag a verdict. Groups: `background` over captions; `relation` over captions of two
    objects; `colour` and `shape` over the objects asked for; `single_all` and `pair_all`: all
    right, over captions of one object and of two. Each is {"seen", "unseen", "count"}: two
    fractions, None where there is nothing to count, and the number of captions (of objects, for
    colour and shape) behind both together.
    """
    if len(verdicts) != len(unseen):
        raise ValueError(f"unseen: got {len(unseen)} flags, expected {len(verdicts)}")
    found: dict[str, list[tuple[bool, bool]]] = {name: [] for name in GROUPS}
    for verdict, flag in zip(verdicts, unseen, strict=True):
        for name, right in _answers(verdict):
            found[name].append((bool(flag), right))
    return {
        name: {
            "seen": _fraction(right for flag, right in answers if not flag),
            "unseen": _fraction(right for flag, right in answers if flag),
            "count": len(answers),
        }
        for name, answers in found.items()
    }


GROUPS = ("background", "relation", "colour", "shape", "single_all", "pair_all")


def _answers(verdict: Verdict) -> Iterable[tuple[str, bool]]:
    yield "background", verdict.background
    if verdict.relation is not None:
        yield "relation", verdict.relation
    yield from (("colour", right) for right in verdict.colour)
    yield from (("shape", right) for right in verdict.shape)
    yield ("single_all" if verdict.relation is None else "pair_all"), verdict.all_right


def _fraction(answers: Iterable[bool]) -> float | None:
    listed = list(answers)
    return sum(listed) / len(listed) if listed else None
