"""Pictures of scenes, and their JPEGs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from data_pipeline.schema import lettering
from data_pipeline.schema import scenes as vocabulary
from data_pipeline.schema.scenes import Scene, SceneObject, Sign

Floats = NDArray[np.float32]
Covered = tuple[slice, slice, Floats]
"""The window of the picture that something touches, rows and columns, and its coverage there."""

JPEG_QUALITY = 95
_SUPERSAMPLED_SIDE = 256  # smaller pictures are drawn on a finer grid of about this side


def render(drawn: Scene, size: int) -> NDArray[np.uint8]:
    """The picture of a scene, anti-aliased at any size; uint8 sRGB [size, size, 3].

    A pixel is the background and the object mixed by the share of it that the object covers, so
    a small rendering is what area-downsampling a large one gives.
    """
    ground = np.array(vocabulary.BACKGROUNDS[drawn.background], np.float32)
    image = np.empty((size, size, 3), np.uint8)
    image[:] = ground.astype(np.uint8)
    for word, (rows, columns, cover) in _painted(drawn, size):
        colour = np.array(vocabulary.COLOURS[word], np.float32)
        under = image[rows, columns].astype(np.float32)
        mixed = under + (colour - under) * cover[:, :, None]  # [h, w, 3]
        image[rows, columns] = np.rint(mixed).astype(np.uint8)
    return image


def _painted(drawn: Scene, size: int) -> Iterator[tuple[str, Covered]]:
    """What is painted on the background, one after another: a colour's word and where."""
    for item in drawn.objects:
        yield item.colour, _object_coverage(item, size)
    if drawn.sign is not None:
        for covered in _sign_coverage(drawn.sign, size):
            yield drawn.sign.colour, covered


def _object_coverage(item: SceneObject, size: int) -> Covered:
    left, right, up, down = (reach * item.radius for reach in vocabulary.shape_extent(item.shape))

    def cover(x: Floats, y: Floats, pixels: float) -> Floats:
        return vocabulary.coverage(item.shape, x, y, item.radius * pixels)

    return _window((item.x, item.y), (left, right, up, down), cover, size)


def _sign_coverage(sign: Sign, size: int) -> Iterator[Covered]:
    """A letter after the other; they do not touch."""
    places, width = lettering.letter_places(sign.word)
    base = sign.y + sign.height / 2
    for letter, place in zip(sign.word, places, strict=True):
        low_x, high_x, low_y, high_y = (v * sign.height for v in lettering.letter_extent(letter))

        def cover(x: Floats, y: Floats, pixels: float, letter: str = letter) -> Floats:
            return lettering.letter_coverage(letter, x, y, sign.height * pixels)

        origin = sign.x + (place - width / 2) * sign.height
        yield _window((origin, base), (-low_x, high_x, -low_y, high_y), cover, size)


def _window(
    centre: tuple[float, float],
    reach: tuple[float, float, float, float],
    cover: Callable[[Floats, Floats, float], Floats],
    size: int,
) -> Covered:
    """The window of something that reaches left, right, up and down of its centre.

    cover: the coverage for pixel centres x, y, in pixels from the centre, of a picture whose side
    has so many pixels.
    """
    fine = max(1, _SUPERSAMPLED_SIDE // size)
    left, right, up, down = reach
    spans = []
    for place, before, after in ((centre[1], up, down), (centre[0], left, right)):
        low = max(0, int(np.floor((place - before) * size)) - 1)
        high = min(size, int(np.ceil((place + after) * size)) + 1)
        spans.append(slice(low, high))
    y, x = (
        (np.arange(span.start * fine, span.stop * fine) + 0.5).astype(np.float32)
        - np.float32(place * size * fine)
        for span, place in zip(spans, centre[::-1], strict=True)
    )
    covered = cover(x, y, size * fine)
    if fine > 1:
        height, width = (span.stop - span.start for span in spans)
        covered = covered.reshape(height, fine, width, fine).mean((1, 3), dtype=np.float32)
    return spans[0], spans[1], covered


def jpeg(image: NDArray[np.uint8]) -> bytes:
    """The picture as a JPEG of quality 95 without chroma subsampling."""
    encoded: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(image), quality=JPEG_QUALITY, colorspace="RGB", colorsubsampling="444"
    )
    return encoded
