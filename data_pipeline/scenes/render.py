"""Pictures of scenes, and their JPEGs."""

from __future__ import annotations

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from data_pipeline.schema import scenes as vocabulary
from data_pipeline.schema.scenes import Scene, SceneObject

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
    for item in drawn.objects:
        rows, columns, cover = _object_coverage(item, size)
        colour = np.array(vocabulary.COLOURS[item.colour], np.float32)
        under = image[rows, columns].astype(np.float32)
        mixed = under + (colour - under) * cover[:, :, None]  # [h, w, 3]
        image[rows, columns] = np.rint(mixed).astype(np.uint8)
    return image


def _object_coverage(item: SceneObject, size: int) -> tuple[slice, slice, NDArray[np.float32]]:
    """The window of the picture that an object touches, and its coverage there."""
    fine = max(1, _SUPERSAMPLED_SIDE // size)
    left, right, up, down = vocabulary.shape_extent(item.shape)
    spans = []
    for centre, before, after in ((item.y, up, down), (item.x, left, right)):
        low = max(0, int(np.floor((centre - before * item.radius) * size)) - 1)
        high = min(size, int(np.ceil((centre + after * item.radius) * size)) + 1)
        spans.append(slice(low, high))
    y, x = (
        (np.arange(span.start * fine, span.stop * fine) + 0.5).astype(np.float32)
        - np.float32(centre * size * fine)
        for span, centre in zip(spans, (item.y, item.x), strict=True)
    )
    cover = vocabulary.coverage(item.shape, x, y, item.radius * size * fine)
    if fine > 1:
        height, width = (span.stop - span.start for span in spans)
        cover = cover.reshape(height, fine, width, fine).mean((1, 3), dtype=np.float32)
    return spans[0], spans[1], cover


def jpeg(image: NDArray[np.uint8]) -> bytes:
    """The picture as a JPEG of quality 95 without chroma subsampling."""
    encoded: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(image), quality=JPEG_QUALITY, colorspace="RGB", colorsubsampling="444"
    )
    return encoded
