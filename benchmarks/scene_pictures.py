"""Pictures of scenes for the verifier's benchmark and tests: true ones, soft ones, spoiled ones.

True renders are as they are and as a generator might leave them; spoiled ones show something else
than their captions say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from data_pipeline.scenes import jpeg, render
from data_pipeline.schema import scenes as vocabulary
from data_pipeline.schema.scenes import Scene, SceneObject

Image = NDArray[np.uint8]
Random = np.random.Generator
T = TypeVar("T")
Maker = Callable[[Scene, Random], Image | None]  # None: this scene cannot be spoiled so


def as_written(truth: Scene, size: int) -> Image:
    """The picture as the corpus holds it, after JPEG."""
    decoded: Image = simplejpeg.decode_jpeg(jpeg(render(truth, size)), colorspace="RGB")
    return decoded


def blown_up(image: Image, side: int = 16, how: int = cv2.INTER_CUBIC) -> Image:
    """Area-averaged to side² and interpolated back: as soft as a cascade that adds nothing."""
    small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, image.shape[:2], interpolation=how), np.uint8)


def noisy(image: Image, random: Random, sigma: float) -> Image:
    """Gaussian noise of `sigma` grey levels added."""
    return _bytes(image + random.normal(0, sigma, image.shape))


def _bytes(values: NDArray[np.floating]) -> Image:
    whole: Image = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return whole


TRUE: dict[str, Maker] = {
    "256 after JPEG": lambda t, r: as_written(t, 256),
    "64 after JPEG": lambda t, r: as_written(t, 64),
    "16": lambda t, r: render(t, 16),
    "256 to 16 and back, bicubic": lambda t, r: blown_up(as_written(t, 256)),
    "256 to 16 and back, bilinear": lambda t, r: blown_up(render(t, 256), how=cv2.INTER_LINEAR),
    "256, noise of sigma 20": lambda t, r: noisy(render(t, 256), r, 20),
    "64, noise of sigma 10": lambda t, r: noisy(render(t, 64), r, 10),
}


# --- spoiled pictures -------------------------------------------------------------------------


def erased(truth: Scene, random: Random, share: float = 0.5, size: int = 256) -> Image:
    """One object with a share of its width or height painted over with the background."""
    image = render(truth, size)
    item = pick(random, truth.objects)
    left, right, up, down = (reach * item.radius for reach in vocabulary.shape_extent(item.shape))
    x0, x1 = item.x - left - 1 / size, item.x + right + 1 / size
    y0, y1 = item.y - up - 1 / size, item.y + down + 1 / size
    sides = (
        (x0, x0 + (x1 - x0) * share, y0, y1),
        (x1 - (x1 - x0) * share, x1, y0, y1),
        (x0, x1, y0, y0 + (y1 - y0) * share),
        (x0, x1, y1 - (y1 - y0) * share, y1),
    )
    a, b, c, d = (max(0, round(value * size)) for value in pick(random, sides))
    image[c:d, a:b] = vocabulary.BACKGROUNDS[truth.background]
    return image


def pick(random: Random, items: Sequence[T]) -> T:
    """One of the items."""
    return items[int(random.integers(len(items)))]


def other_colour(truth: Scene, random: Random) -> Image:
    """One object in another colour."""
    item = pick(random, truth.objects)
    word = pick(random, [word for word in vocabulary.COLOURS if word != item.colour])
    return _exchanged(truth, item, replace(item, colour=word))


def other_shape(truth: Scene, random: Random) -> Image:
    """One object of another shape."""
    item = pick(random, truth.objects)
    word = pick(random, [word for word in vocabulary.SHAPES if word != item.shape])
    return _exchanged(truth, item, replace(item, shape=word))


def _exchanged(truth: Scene, old: SceneObject, new: SceneObject) -> Image:
    objects = tuple(new if item is old else item for item in truth.objects)
    return render(replace(truth, objects=objects), 256)


def other_background(truth: Scene, random: Random) -> Image:
    """The scene on another background."""
    words = [word for word in vocabulary.BACKGROUNDS if word != truth.background]
    return render(replace(truth, background=pick(random, words)), 256)


def half_background(truth: Scene, random: Random) -> Image:
    """The left half of the background in a colour of its own."""
    image = render(truth, 256)
    ground = (image[:, :128] == vocabulary.BACKGROUNDS[truth.background]).all(-1)
    image[:, :128][ground] = (90, 200, 90)
    return image


def painted_over(truth: Scene, random: Random) -> Image:
    """One half of the picture painted over with another background's colour."""
    image = render(truth, 256)
    words = [word for word in vocabulary.BACKGROUNDS if word != truth.background]
    halves = (image[:, :128], image[:, 128:], image[:128], image[128:])
    pick(random, halves)[:] = vocabulary.BACKGROUNDS[pick(random, words)]
    return image


def turned_hues(truth: Scene, random: Random) -> Image:
    """All hues turned by 80 to 280 degrees."""
    hsv = cv2.cvtColor(render(truth, 256), cv2.COLOR_RGB2HSV).astype(np.int64)
    hsv[..., 0] = (hsv[..., 0] + random.integers(40, 140)) % 180
    return np.asarray(cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB), np.uint8)


def one_more(truth: Scene, random: Random) -> Image:
    """An object too many, in the corner farthest from the others."""
    corners = [(x, y) for x in (0.15, 0.85) for y in (0.15, 0.85)]

    def room(corner: tuple[float, float]) -> float:
        x, y = corner
        return min(float(np.hypot(x - item.x, y - item.y)) for item in truth.objects)

    x, y = max(corners, key=room)
    look = pick(random, tuple(vocabulary.COLOURS)), pick(random, vocabulary.SHAPES)
    added = SceneObject(*look, "small", x, y, 0.1)
    return render(replace(truth, objects=(*truth.objects, added)), 256)


def one_less(truth: Scene, random: Random) -> Image:
    """An object missing."""
    place = int(random.integers(len(truth.objects)))
    objects = truth.objects[:place] + truth.objects[place + 1 :]
    return render(replace(truth, objects=objects), 256)


def merged(truth: Scene, random: Random) -> Image:
    """Two objects overlapping: those of a pair, or a single one and another of any colour."""
    if truth.relation is None:
        item = truth.objects[0]
        colour = pick(random, (item.colour, *vocabulary.COLOURS))
        aside = item.radius * (0.9 if item.x < 0.5 else -0.9)
        both = (item, replace(item, x=item.x + aside, colour=colour))
        return render(replace(truth, objects=both), 256)
    first, second = truth.objects
    apart = float(np.hypot(first.x - second.x, first.y - second.y))
    pull = (first.radius + second.radius) * random.uniform(0.5, 0.7) / apart
    x, y = (first.x + second.x) / 2, (first.y + second.y) / 2
    pulled = tuple(
        replace(item, x=x + (item.x - x) * pull, y=y + (item.y - y) * pull)
        for item in truth.objects
    )
    return render(replace(truth, objects=pulled), 256)


def changed_places(truth: Scene, random: Random) -> Image | None:
    """The two objects of a pair in each other's place."""
    if truth.relation is None:
        return None
    first, second = truth.objects
    turned = replace(first, x=second.x, y=second.y), replace(second, x=first.x, y=first.y)
    return render(replace(truth, objects=turned), 256)


def changed_colours(truth: Scene, random: Random) -> Image | None:
    """The two objects of a pair with each other's colour."""
    if truth.relation is None:
        return None
    first, second = truth.objects
    if first.colour == second.colour or first.shape == second.shape:
        return None
    turned = replace(first, colour=second.colour), replace(second, colour=first.colour)
    return render(replace(truth, objects=turned), 256)


def clouds(truth: Scene, random: Random) -> Image:
    """Smooth random colours, as an untrained generator paints."""
    side = pick(random, (2, 3, 4, 6, 8, 16, 32))
    grains = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(grains, (256, 256), interpolation=cv2.INTER_CUBIC), np.uint8)


def clouded(truth: Scene, random: Random) -> Image:
    """The scene behind smooth random colours."""
    weight = random.uniform(0.3, 0.7)
    return _bytes((1 - weight) * render(truth, 256) + weight * clouds(truth, random))


def grey(truth: Scene, random: Random) -> Image:
    """The scene without colours."""
    return np.repeat(cv2.cvtColor(render(truth, 256), cv2.COLOR_RGB2GRAY)[:, :, None], 3, 2)


SPOILED: dict[str, Maker] = {
    "blank": lambda t, r: render(replace(t, objects=()), 256),
    "noise, uniform, 256": lambda t, r: r.integers(0, 256, (256, 256, 3), dtype=np.uint8),
    "noise, Gaussian, 64": lambda t, r: _bytes(r.normal(128, 60, (64, 64, 3))),
    "clouds": clouds,
    "scene behind clouds": clouded,
    "half erased, 256": erased,
    "half erased, 64": lambda t, r: erased(t, r, size=64),
    "half erased, soft": lambda t, r: blown_up(erased(t, r)),
    "another colour": other_colour,
    "hues turned": turned_hues,
    "colours inverted": lambda t, r: np.asarray(255 - render(t, 256), np.uint8),
    "grey": grey,
    "another shape": other_shape,
    "another background": other_background,
    "half of another background": half_background,
    "half painted over": painted_over,
    "one object too many": one_more,
    "one object missing": one_less,
    "objects merged": merged,
    "places exchanged": changed_places,
    "colours exchanged": changed_colours,
}
