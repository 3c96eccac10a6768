"""The synthetic scenes: vocabulary, palette, shape geometry and splits.

Standard library and numpy only: the corpus writer draws scenes from this, and the verifier
reads pictures back with the same palette and the same outlines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from base.hashing import stable_hash

Rgb = tuple[int, int, int]
Floats = NDArray[np.float32]
Kind = Literal["single", "pair", "crowd", "sign"]

KINDS: tuple[Kind, ...] = ("single", "pair", "crowd", "sign")
USUAL_KINDS: tuple[Kind, ...] = ("single", "pair")  # what the demo trains on

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
COUNTS: dict[int, str] = {3: "three", 4: "four", 5: "five", 6: "six"}
LAYOUTS: tuple[str, ...] = ("row", "column", "group")  # of three and more objects
LONGEST_LIST, LONGEST_ROW = 4, 4  # objects that are named one by one; that stand in one line
WORDS: tuple[str, ...] = (
    *("bat", "box", "bus", "cat", "cow", "cup", "dog", "egg", "fox", "hat", "hen", "jam", "key"),
    *("net", "owl", "pen", "pig", "sun", "van", "zip", "bear", "bird", "book", "cake", "door"),
    *("fish", "frog", "lamp", "leaf", "milk", "moon", "ring", "ship", "star", "tree", "wolf"),
    *("apple", "bread", "queen", "tiger"),
)
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

# Radius of the objects of a crowd, and of a row or column of so many.
CROWD_RADIUS: tuple[float, float] = (0.095, 0.1065)
ROW_RADII: dict[int, tuple[float, float]] = {3: (0.1, 0.115), 4: (0.08, 0.085)}

# Colour-shape combinations that training never shows.
UNSEEN_COMBINATIONS: frozenset[tuple[str, str]] = frozenset(
    {("red", "cross"), ("green", "circle"), ("blue", "triangle"), ("yellow", "square")}
)
UNSEEN_COUNTS: frozenset[tuple[int, str]] = frozenset(
    {(3, "orange"), (4, "cyan"), (5, "purple"), (6, "pink"), (3, "pink"), (4, "red")}
)
UNSEEN_WORDS: frozenset[str] = frozenset(
    {"bat", "cow", "hen", "pen", "bear", "leaf", "ring", "wolf"}
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
class Sign:
    """A written word; x, y (its middle) and the x-height are fractions of the picture's side."""

    word: str
    colour: str
    x: float
    y: float
    height: float


@dataclass(frozen=True)
class Scene:
    """A plain background with objects or with a sign.

    One object; or two: objects[0] is `relation` objects[1]; or three and more in a `layout`, those
    of a row from left to right, those of a column from top to bottom. `sign` stands alone.
    """

    background: str
    objects: tuple[SceneObject, ...]
    relation: str | None = None
    layout: str | None = None
    sign: Sign | None = None

    @property
    def kind(self) -> Kind:
        """What sort of scene it is."""
        if self.sign is not None:
            return "sign"
        return "crowd" if len(self.objects) > 2 else "single" if self.relation is None else "pair"

    @property
    def counted(self) -> bool:
        """Whether it is a crowd of equals, which captions count instead of naming each."""
        return self.kind == "crowd" and len({item.combination for item in self.objects}) == 1

    def to_json(self) -> dict[str, Any]:
        """Plain data, the value of the key `scene` in a sample's json."""
        data: dict[str, Any] = {
            "background": self.background,
            "objects": [dict(vars(item)) for item in self.objects],
            "relation": self.relation,
        }
        if self.layout is not None:
            data["layout"] = self.layout
        if self.sign is not None:
            data["sign"] = dict(vars(self.sign))
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Scene:
        """Inverse of `to_json`. Raises ValueError on words outside the vocabulary."""
        try:
            objects = tuple(SceneObject(**item) for item in data["objects"])
            sign = None if data.get("sign") is None else Sign(**data["sign"])
            scene = cls(data["background"], objects, data["relation"], data.get("layout"), sign)
        except (KeyError, TypeError) as error:
            raise ValueError(f"scene: got {data!r}, expected the fields of Scene") from error
        _check_words(scene)
        return scene


def _check_words(scene: Scene) -> None:
    number = len(scene.objects)
    checks: list[tuple[str, object, Any]] = [
        ("background", scene.background, BACKGROUNDS),
        ("objects", number, (1, 2, *COUNTS) if scene.sign is None else (0,)),
        ("relation", scene.relation, RELATIONS if number == 2 else (None,)),
        ("layout", scene.layout, LAYOUTS if number > 2 else (None,)),
    ]
    for item in scene.objects:
        checks += [("colour", item.colour, COLOURS), ("shape", item.shape, SHAPES)]
        checks += [("size", item.size, SIZES)]
    if scene.sign is not None:
        checks += [("word", scene.sign.word, WORDS), ("colour", scene.sign.colour, COLOURS)]
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


# --- splits -----------------------------------------------------------------------------------


def is_unseen(scene: Scene) -> bool:
    """Whether the scene holds a combination that training never shows.

    That is one of UNSEEN_COMBINATIONS, UNSEEN_COUNTS or UNSEEN_WORDS, or one of the unordered pairs
    of combinations that are kept out as pairs although both of their members are seen.
    """
    if scene.sign is not None:
        return scene.sign.word in UNSEEN_WORDS
    looks = [item.combination for item in scene.objects]
    if any(look in UNSEEN_COMBINATIONS for look in looks):
        return True
    if scene.counted:
        return (len(looks), looks[0][0]) in UNSEEN_COUNTS
    return any(
        stable_hash("scenes.pair", *first, *second) % UNSEEN_PAIR_SHARE == 0
        for first, second in combinations(sorted(looks), 2)
    )


def is_held_out(caption: str) -> bool:
    """Whether a caption is kept out of training for being asked about afterwards."""
    return stable_hash("scenes.caption", caption) % HELD_OUT_SHARE == 0
