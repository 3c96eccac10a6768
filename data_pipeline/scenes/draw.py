"""Scenes and captions drawn from the vocabulary, one for each (seed, split, index)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Literal, TypeVar

from base.hashing import stable_hash
from data_pipeline.schema import captions, lettering
from data_pipeline.schema import scenes as vocabulary
from data_pipeline.schema.scenes import USUAL_KINDS, Kind, Scene, SceneObject, Sign

Split = Literal["train", "heldout", "unseen"]
SPLITS: tuple[Split, ...] = ("train", "heldout", "unseen")

MARGIN = 0.04  # of the side, between an object and the picture's edge
_GAP = (0.14, 0.18)  # of the side, between the two objects of a pair, along their relation
# Scenes are composed about the centre: captions do not say where, and what a caption leaves open
# a small decoder pays for with most of its training.
_JITTER_SINGLE = 0.03
_JITTER_PAIR = 0.02
_JITTER_CROWD = 0.01
_ROW_GAP = 0.1  # of the side, between two objects of a row or column; less where they need more
_GROUP_STEP = (0.31, 0.42)  # of the side, between the objects of a line, and between two lines
_GROUPS: dict[int, tuple[tuple[int, int], ...]] = {  # objects of the first line and of the second
    3: ((2, 1), (1, 2)),
    4: ((2, 2),),
    5: ((3, 2), (2, 3)),
    6: ((3, 3),),
}
_SIGN_WIDTH, _SIGN_HEIGHT = 0.84, 0.22  # of the side: a word's most, and its x-height's

T = TypeVar("T")


def scene(
    seed: int, index: int, split: Split, kinds: Sequence[Kind] = USUAL_KINDS
) -> tuple[Scene, str]:
    """The scene and caption number `index` of a split; every kind is equally frequent.

    train: no unseen combination, no held-out caption; heldout: no unseen combination, a held-out
    caption; unseen: at least one unseen combination. Drawn again until it fits.
    """
    # Only Random.random() is used: Python promises its sequence for a seed in every version.
    random = Random(stable_hash("scenes", seed, split, index))
    draw = _pick(random, [_DRAWN[kind] for kind in _DRAWN if kind in kinds])
    while True:
        drawn = draw(random)
        caption = _draw_caption(random, drawn)
        if _fits(drawn, caption, split):
            return drawn, caption


def _fits(drawn: Scene, caption: str, split: Split) -> bool:
    if split == "unseen":
        return vocabulary.is_unseen(drawn)
    held_out = vocabulary.is_held_out(caption)
    return held_out == (split == "heldout") and not vocabulary.is_unseen(drawn)


def _pick(random: Random, items: Sequence[T]) -> T:
    return items[int(random.random() * len(items))]


def _between(random: Random, low: float, high: float) -> float:
    return low + (high - low) * random.random()


_COLOURS = tuple(vocabulary.COLOURS)
_BACKGROUNDS = tuple(vocabulary.BACKGROUNDS)
_SIZES = tuple(vocabulary.SIZES)


def _draw_look(random: Random, sizes: dict[str, tuple[float, float]]) -> dict[str, Any]:
    size = _pick(random, _SIZES)
    return {
        "colour": _pick(random, _COLOURS),
        "shape": _pick(random, vocabulary.SHAPES),
        "size": size,
        "radius": round(_between(random, *sizes[size]), 4),
    }


def _draw_single(random: Random) -> Scene:
    look = _draw_look(random, vocabulary.SIZES)
    left, right, up, down = (r * look["radius"] for r in vocabulary.shape_extent(look["shape"]))
    centre = [
        min(max(0.5 + _between(random, -_JITTER_SINGLE, _JITTER_SINGLE), low), high)
        for low, high in ((left + MARGIN, 1 - right - MARGIN), (up + MARGIN, 1 - down - MARGIN))
    ]
    x, y = (round(value, 4) for value in centre)
    return Scene(_pick(random, _BACKGROUNDS), (SceneObject(x=x, y=y, **look),))


def _draw_pair(random: Random) -> Scene:
    relation = _pick(random, vocabulary.RELATIONS)
    vertical = relation in ("above", "below")
    looks = [_draw_look(random, vocabulary.PAIR_SIZES) for _ in range(2)]
    while _alike(*looks) or _room(_reach(looks, vertical)) < _GAP[0]:
        looks[1] = _draw_look(random, vocabulary.PAIR_SIZES)
    backwards = relation in ("right of", "below")  # the object named first comes second in space
    along = _draw_along(random, looks[::-1] if backwards else looks, vertical)
    if backwards:
        along.reverse()
    objects = []
    for look, place in zip(looks, along, strict=True):
        across = round(0.5 + _between(random, -_JITTER_PAIR, _JITTER_PAIR), 4)
        x, y = (across, place) if vertical else (place, across)
        objects.append(SceneObject(x=x, y=y, **look))
    return Scene(_pick(random, _BACKGROUNDS), tuple(objects), relation)


def _alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return (one["colour"], one["shape"]) == (other["colour"], other["shape"])


def _reach(looks: list[dict[str, Any]], vertical: bool) -> list[tuple[float, float]]:
    """How far each goes before and after its place, along an axis."""
    extents = [vocabulary.shape_extent(look["shape"]) for look in looks]
    sides = [extent[2:] if vertical else extent[:2] for extent in extents]
    return [
        (before * look["radius"], after * look["radius"])
        for look, (before, after) in zip(looks, sides, strict=True)
    ]


def _room(reach: list[tuple[float, float]]) -> float:
    """What objects in a line leave between the margins."""
    return 1 - 2 * MARGIN - sum(map(sum, reach))


def _draw_along(random: Random, looks: list[dict[str, Any]], vertical: bool) -> list[float]:
    """Places of two objects along the axis of their relation, the nearer to 0 first."""
    reach = _reach(looks, vertical)
    room = _room(reach)
    gap = _between(random, _GAP[0], min(_GAP[1], room))
    slack = room - gap
    shift = min(max(slack / 2 + _between(random, -_JITTER_PAIR, _JITTER_PAIR), 0.0), slack)
    first = MARGIN + reach[0][0] + shift
    return [round(first, 4), round(first + reach[0][1] + gap + reach[1][0], 4)]


def _draw_crowd(random: Random) -> Scene:
    """Three and more objects: equals, or all different and few enough to be named."""
    if random.random() < 0.5:
        number = _pick(random, tuple(vocabulary.COUNTS))
        looks = [(_pick(random, _COLOURS), _pick(random, vocabulary.SHAPES))] * number
    else:
        number = _pick(random, [n for n in vocabulary.COUNTS if n <= vocabulary.LONGEST_LIST])
        looks = []
        while len(looks) < number:
            look = _pick(random, _COLOURS), _pick(random, vocabulary.SHAPES)
            looks += [look] if look not in looks else []
    layouts = vocabulary.LAYOUTS if number <= vocabulary.LONGEST_ROW else ("group",)
    layout = _pick(random, layouts)
    radii = vocabulary.CROWD_RADIUS if layout == "group" else vocabulary.ROW_RADII[number]
    radius = round(_between(random, *radii), 4)
    if layout == "group":
        places = _group_places(random, number)
    else:
        places = _row_places(random, [shape for _, shape in looks], radius, layout == "column")
    objects = tuple(
        SceneObject(colour, shape, "medium", x, y, radius)
        for (colour, shape), (x, y) in zip(looks, places, strict=True)
    )
    return Scene(_pick(random, _BACKGROUNDS), objects, layout=layout)


def _row_places(
    random: Random, shapes: list[str], radius: float, vertical: bool
) -> list[tuple[float, float]]:
    """Places in one line about the centre, outlines equally far apart."""
    reach = _reach([{"shape": shape, "radius": radius} for shape in shapes], vertical)
    room = _room(reach)
    gap = min(_ROW_GAP, room / (len(shapes) - 1))
    along = MARGIN + (room - gap * (len(shapes) - 1)) / 2
    places = []
    for before, after in reach:
        across = 0.5 + _between(random, -_JITTER_CROWD, _JITTER_CROWD)
        x, y = (across, along + before) if vertical else (along + before, across)
        places.append((round(x, 4), round(y, 4)))
        along += before + after + gap
    return places


def _group_places(random: Random, number: int) -> list[tuple[float, float]]:
    """Places in two lines, which lie or stand."""
    lines = _pick(random, _GROUPS[number])
    standing = random.random() < 0.5
    step, apart = _GROUP_STEP
    places = []
    for line, count in enumerate(lines):
        for place in range(count):
            along = 0.5 + step * (place - (count - 1) / 2)
            across = 0.5 + apart * (line - 0.5)
            x, y = (across, along) if standing else (along, across)
            x, y = (v + _between(random, -_JITTER_CROWD, _JITTER_CROWD) for v in (x, y))
            places.append((round(x, 4), round(y, 4)))
    return places


def _draw_sign(random: Random) -> Scene:
    word, colour = _pick(random, vocabulary.WORDS), _pick(random, _COLOURS)
    _, width = lettering.letter_places(word)  # in x-heights
    height = min(_SIGN_HEIGHT, _SIGN_WIDTH / width) * _between(random, 0.94, 1.0)
    x, y = (0.5 + _between(random, -_JITTER_SINGLE, _JITTER_SINGLE) for _ in range(2))
    sign = Sign(word, colour, round(x, 4), round(y, 4), round(height, 4))
    return Scene(_pick(random, _BACKGROUNDS), (), sign=sign)


# The order decides which kind an index has.
_DRAWN: dict[Kind, Callable[[Random], Scene]] = {
    "pair": _draw_pair,
    "single": _draw_single,
    "crowd": _draw_crowd,
    "sign": _draw_sign,
}


def _draw_caption(random: Random, drawn: Scene) -> str:
    named = random.random() < 0.5
    template = _pick(random, captions.PHRASINGS[drawn.kind])
    ways = captions.relation_phrases(drawn)
    relation = _pick(random, ways) if drawn.relation is not None else ways[0]
    return captions.phrase(drawn, template, relation, named)
