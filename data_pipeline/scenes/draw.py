"""Scenes and captions drawn from the vocabulary, one for each (seed, split, index)."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, Literal, TypeVar

from base.hashing import stable_hash
from data_pipeline.schema import scenes as vocabulary
from data_pipeline.schema.scenes import Scene, SceneObject

Split = Literal["train", "heldout", "unseen"]
SPLITS: tuple[Split, ...] = ("train", "heldout", "unseen")

MARGIN = 0.04  # of the side, between an object and the picture's edge
_GAP = (0.14, 0.18)  # of the side, between the two objects of a pair, along their relation
# Scenes are composed about the centre: captions do not say where, and what a caption leaves open
# a small decoder pays for with most of its training.
_JITTER_SINGLE = 0.03
_JITTER_PAIR = 0.02

T = TypeVar("T")


def scene(seed: int, index: int, split: Split) -> tuple[Scene, str]:
    """The scene and caption number `index` of a split; about half of them hold two objects.

    train: no unseen combination, no held-out caption; heldout: no unseen combination, a held-out
    caption; unseen: at least one unseen combination. Drawn again until it fits.
    """
    # Only Random.random() is used: Python promises its sequence for a seed in every version.
    random = Random(stable_hash("scenes", seed, split, index))
    draw = _draw_pair if random.random() < 0.5 else _draw_single
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
    looks = [_draw_look(random, vocabulary.PAIR_SIZES) for _ in range(2)]
    while (looks[0]["colour"], looks[0]["shape"]) == (looks[1]["colour"], looks[1]["shape"]):
        looks[1] = _draw_look(random, vocabulary.PAIR_SIZES)
    vertical = relation in ("above", "below")
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


def _draw_along(random: Random, looks: list[dict[str, Any]], vertical: bool) -> list[float]:
    """Places of two objects along the axis of their relation, the nearer to 0 first."""
    reach = []
    for look in looks:
        left, right, up, down = vocabulary.shape_extent(look["shape"])
        before, after = (up, down) if vertical else (left, right)
        reach.append((before * look["radius"], after * look["radius"]))
    room = 1 - 2 * MARGIN - sum(map(sum, reach))
    gap = _between(random, _GAP[0], max(_GAP[0], min(_GAP[1], room)))
    slack = max(0.0, room - gap)
    shift = min(max(slack / 2 + _between(random, -_JITTER_PAIR, _JITTER_PAIR), 0.0), slack)
    first = MARGIN + reach[0][0] + shift
    return [round(first, 4), round(first + reach[0][1] + gap + reach[1][0], 4)]


def _draw_caption(random: Random, drawn: Scene) -> str:
    named = random.random() < 0.5
    if drawn.relation is None:
        template = _pick(random, vocabulary.SINGLE_PHRASINGS)
        return vocabulary.phrase(drawn, template, size_named=named)
    template = _pick(random, vocabulary.PAIR_PHRASINGS)
    relation = _pick(random, vocabulary.RELATION_PHRASES[drawn.relation])
    return vocabulary.phrase(drawn, template, relation, named)
