"""The synthetic scenes: vocabulary, palette, shape geometry and captions.

Standard library and numpy only: the corpus writer draws scenes from this, and the verifier
reads pictures back with the same palette and the same outlines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from base.hashing import stable_hash

Rgb = tuple[int, int, int]
Floats = NDArray[np.float32]

# sRGB. Any two of these, backgrounds included, lie at least 32 apart in CIELAB.
COLOURS: dict[str, Rgb] = {
    "red": (214, 32, 38),
    "orange": (250, 135, 10),
    "yellow": (250, 222, 20),
    "green": (30, 140, 55),
    "cyan": (20, 190, 215),
    "blue": (35, 65, 215),
    "purple": (145, 35, 160),
    "pink": (250, 125, 195),
}
BACKGROUNDS: dict[str, Rgb] = {
    "white": (255, 255, 255),
    "grey": (128, 128, 128),
    "black": (0, 0, 0),
    "sand": (218, 188, 138),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "cross")
RELATIONS: tuple[str, ...] = ("left of", "right of", "above", "below")
# Radius as a fraction of the picture's side: (lowest, highest), of a single object and of a pair.
SIZES: dict[str, tuple[float, float]] = {
    "small": (0.18, 0.20),
    "medium": (0.215, 0.24),
    "large": (0.26, 0.29),
}
PAIR_SIZES: dict[str, tuple[float, float]] = {
    "small": (0.13, 0.14),
    "medium": (0.15, 0.165),
    "large": (0.17, 0.18),
}

# Colour-shape combinations that training never shows.
UNSEEN_COMBINATIONS: frozenset[tuple[str, str]] = frozenset(
    {("red", "cross"), ("green", "circle"), ("blue", "triangle"), ("yellow", "square")}
)
UNSEEN_PAIR_SHARE = 8  # one in this many unordered pairs of combinations is kept out as well
HELD_OUT_SHARE = 8  # one in this many captions is kept out of training

# Half-sides and reaches in units of the radius, chosen so that the four shapes look equally big.
_SQUARE = 0.9
_TRIANGLE_IN = 0.64  # inscribed circle of the upright equilateral triangle
_CROSS_REACH = 1.06
_CROSS_HALF = 0.36


@dataclass(frozen=True)
class SceneObject:
    """One object; x, y (centroid) and radius are fractions of the picture's side, y downwards."""

    colour: str
    shape: str
    size: str
    x: float
    y: float
    radius: float

    @property
    def combination(self) -> tuple[str, str]:
        """Colour and shape, the pair that a split may keep out of training."""
        return self.colour, self.shape


@dataclass(frozen=True)
class Scene:
    """A plain background with one object, or with two: objects[0] is `relation` objects[1]."""

    background: str
    objects: tuple[SceneObject, ...]
    relation: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data, the value of the key `scene` in a sample's json."""
        return {
            "background": self.background,
            "objects": [dict(vars(item)) for item in self.objects],
            "relation": self.relation,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Scene:
        """Inverse of `to_json`. Raises ValueError on words outside the vocabulary."""
        try:
            objects = tuple(SceneObject(**item) for item in data["objects"])
            scene = cls(data["background"], objects, data["relation"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"scene: got {data!r}, expected the fields of Scene") from error
        _check_words(scene)
        return scene


def _check_words(scene: Scene) -> None:
    relations = RELATIONS if len(scene.objects) == 2 else (None,)
    checks: list[tuple[str, object, Any]] = [
        ("background", scene.background, BACKGROUNDS),
        ("objects", len(scene.objects), (1, 2)),
        ("relation", scene.relation, relations),
    ]
    for item in scene.objects:
        checks += [("colour", item.colour, COLOURS), ("shape", item.shape, SHAPES)]
        checks += [("size", item.size, SIZES)]
    for field, got, expected in checks:
        if got not in expected:
            raise ValueError(f"scene.{field}: got {got!r}, expected one of {list(expected)}")


def signed_distance(shape: str, x: Floats, y: Floats) -> Floats:
    """Distance to the outline of a shape of radius 1 with its centroid at 0; negative inside.

    x, y: broadcastable, in radii, y downwards. Exact along edges; at convex corners it is the
    largest of the edges' distances, so corners stay sharp.
    """
    ax, ay = np.abs(x), np.abs(y)
    distance: Floats
    if shape == "circle":
        distance = np.sqrt(x * x + y * y) - np.float32(1)
    elif shape == "square":
        distance = np.maximum(ax, ay) - np.float32(_SQUARE)
    elif shape == "triangle":
        slope = ax * np.float32(np.sqrt(0.75)) - y * np.float32(0.5)
        distance = np.maximum(y, slope) - np.float32(_TRIANGLE_IN)
    elif shape == "cross":
        upright = np.maximum(ax - np.float32(_CROSS_HALF), ay - np.float32(_CROSS_REACH))
        lying = np.maximum(ay - np.float32(_CROSS_HALF), ax - np.float32(_CROSS_REACH))
        distance = np.minimum(upright, lying)
    else:
        raise ValueError(f"shape: got {shape!r}, expected one of {list(SHAPES)}")
    return distance


def shape_area(shape: str) -> float:
    """Area of a shape of radius 1, in square radii."""
    areas = {
        "circle": np.pi,
        "square": 4 * _SQUARE**2,
        "triangle": 3 * np.sqrt(3) * _TRIANGLE_IN**2,
        "cross": 4 * _CROSS_HALF * (2 * _CROSS_REACH - _CROSS_HALF),
    }
    return float(areas[shape])


def shape_extent(shape: str) -> tuple[float, float, float, float]:
    """How far a shape of radius 1 reaches left, right, up and down of its centroid, in radii."""
    if shape == "triangle":
        half = _TRIANGLE_IN * float(np.sqrt(3))
        return half, half, 2 * _TRIANGLE_IN, _TRIANGLE_IN
    reach = {"circle": 1.0, "square": _SQUARE, "cross": _CROSS_REACH}[shape]
    return reach, reach, reach, reach


def coverage(shape: str, x: Floats, y: Floats, radius: float) -> Floats:
    """Share of each pixel that the shape covers, 0 to 1, from the signed distance.

    x [W], y [H]: pixel centres relative to the shape's centroid, in pixels; radius in pixels.
    Returns float32 [H, W].
    """
    scale = np.float32(1 / radius)
    distance = signed_distance(shape, x[None, :] * scale, y[:, None] * scale)  # [H, W]
    covered: Floats = np.clip(np.float32(0.5) - distance * np.float32(radius), 0, 1)
    return covered


# --- captions ---------------------------------------------------------------------------------

SINGLE_PHRASINGS: tuple[str, ...] = (
    "{a_first} on a {background} background",
    "{first} on {background}",
    "a photo of {a_first}, {background} background",
    "a picture of {a_first} on {background}",
    "one {first} on a plain {background} background",
    "a {background} background with {a_first}",
)
PAIR_PHRASINGS: tuple[str, ...] = (
    "{a_first} {relation} {a_second} on a {background} background",
    "{first} {relation} {second} on {background}",
    "photo of {a_first} {relation} {a_second}, {background} background",
    "{a_first} {relation} {a_second}, {background} background",
    "on {background}, {a_first} is {relation} {a_second}",
)
RELATION_PHRASES: dict[str, tuple[str, ...]] = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above",),
    "below": ("below", "under"),
}


def _noun(item: SceneObject, size_named: bool) -> str:
    words = [item.colour, item.shape]
    if size_named and item.size != "medium":  # the usual size goes without saying
        words.insert(0, item.size)
    return " ".join(words)


def _with_article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def phrase(scene: Scene, phrasing: str, relation_phrase: str = "", size_named: bool = False) -> str:
    """One caption of a scene: a template of *_PHRASINGS and one of RELATION_PHRASES filled in."""
    nouns = [_noun(item, size_named) for item in scene.objects]
    words = {"first": nouns[0], "a_first": _with_article(nouns[0])}
    if len(nouns) == 2:
        words |= {"second": nouns[1], "a_second": _with_article(nouns[1])}
    return phrasing.format(background=scene.background, relation=relation_phrase, **words)


def all_captions(scene: Scene) -> tuple[str, ...]:
    """Every caption that a scene can have, each once, in a fixed order."""
    single = scene.relation is None
    templates = SINGLE_PHRASINGS if single else PAIR_PHRASINGS
    relations = ("",) if scene.relation is None else RELATION_PHRASES[scene.relation]
    captions = (
        phrase(scene, template, relation, named)
        for template in templates
        for relation in relations
        for named in (False, True)
    )
    return tuple(dict.fromkeys(captions))


# --- splits -----------------------------------------------------------------------------------


def is_unseen(scene: Scene) -> bool:
    """Whether the scene holds a combination that training never shows.

    That is one of UNSEEN_COMBINATIONS, or one of the unordered pairs of combinations that are
    kept out as pairs although both of their members are seen.
    """
    if any(item.combination in UNSEEN_COMBINATIONS for item in scene.objects):
        return True
    if len(scene.objects) < 2:
        return False
    first, second = sorted(item.combination for item in scene.objects)
    return stable_hash("scenes.pair", *first, *second) % UNSEEN_PAIR_SHARE == 0


def is_held_out(caption: str) -> bool:
    """Whether a caption is kept out of training for being asked about afterwards."""
    return stable_hash("scenes.caption", caption) % HELD_OUT_SHARE == 0
