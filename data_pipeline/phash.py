"""imagehash.phash of a stored picture, the same bits in a fraction of the time.

imagehash scales to 32 x 32 with Pillow's Lanczos filter, takes a cosine transform and compares its
64 lowest coefficients with their median. Pillow's filter is a sum of products of whole numbers,
rounded once for each axis; here the products are those of matrices, exact in float32. What cannot
be told with certainty from rounded floats is left to imagehash.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image

_SIDE = 32
_LOW = 8
_BITS = 22  # Pillow's Resample.c, PRECISION_BITS of 8-bit pictures: weights in units of 2⁻²²
_HALF = 10  # bits of the lower part of a weight
_LONGEST = 640  # of a side; beyond it sums of lower parts would not be exact in float32
_BLOCK = 8  # columns of the result that are computed together
_UNSURE = 1e-4  # coefficients reach 10⁶ and are off by 10⁻⁹ at most

Pixels = npt.NDArray[np.uint8]
_Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Part:
    """Weights of columns first … last - 1 of the source, for some columns of the result."""

    first: int
    last: int
    weights: _Floats  # [last - first, 2 * columns]: upper parts, then lower parts


def phash(pixels: Pixels) -> str:
    """16 hex digits of an RGB picture [H, W, 3], or [H, W, 4] whose last channel is left out."""
    grey = _grey(pixels)
    if max(grey.size) <= _LONGEST and _agrees(*grey.size):
        small = _scaled(np.asarray(grey))
    else:
        small = np.asarray(grey.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS))
    return _hash(small)


def _grey(pixels: Pixels) -> Image.Image:
    """Pillow's weights of red, green and blue; four channels are not copied."""
    if pixels.shape[2] == 3:
        return Image.fromarray(pixels).convert("L")
    size = (pixels.shape[1], pixels.shape[0])
    return Image.frombuffer("RGBX", size, pixels, "raw", "RGBX", 0, 1).convert("L")


def _scaled(grey: Pixels) -> Pixels:
    """[H, W] to [32, 32], as Pillow does: along the rows, rounded, then along the columns."""
    rows = _along_rows(grey.astype(np.float32))  # [H, 32]
    return np.ascontiguousarray(_along_rows(rows.T.astype(np.float32, order="C")).T)


def _along_rows(values: _Floats) -> Pixels:
    """[n, length] to [n, 32], rounded to 0 … 255."""
    parts = _parts(values.shape[1])
    products = np.empty((len(values), len(parts), 2, _BLOCK), np.int32)
    for number, part in enumerate(parts):
        product = values[:, part.first : part.last] @ part.weights
        products[:, number] = product.reshape(len(values), 2, _BLOCK)
    sums = (products[:, :, 0] << _HALF) + products[:, :, 1]  # [n, parts, columns]
    rounded = (sums + (1 << (_BITS - 1))) >> _BITS
    return rounded.clip(0, 255).astype(np.uint8).reshape(len(values), _SIDE)


@lru_cache(maxsize=64)
def _parts(length: int) -> tuple[_Part, ...]:
    whole = _weights(length)
    parts = []
    for start in range(0, _SIDE, _BLOCK):
        columns = whole[:, start : start + _BLOCK]
        used = np.flatnonzero(columns.any(axis=1))
        first, last = int(used[0]), int(used[-1]) + 1
        upper = (columns[first:last] + (1 << (_HALF - 1))) >> _HALF
        lower = columns[first:last] - (upper << _HALF)
        parts.append(_Part(first, last, np.concatenate([upper, lower], 1).astype(np.float32)))
    return tuple(parts)


def _weights(length: int) -> npt.NDArray[np.int64]:
    """[length, 32]: Pillow's Lanczos weights as whole numbers (Resample.c, precompute_coeffs)."""
    scale = length / _SIDE
    stretch = max(scale, 1.0)
    reach = 3.0 * stretch
    table = np.zeros((length, _SIDE), np.int64)
    for column in range(_SIDE):
        centre = (column + 0.5) * scale
        first = max(0, int(centre - reach + 0.5))
        last = min(length, int(centre + reach + 0.5))
        weights = [_lanczos((x - centre + 0.5) / stretch) for x in range(first, last)]
        total = sum(weights)
        for x, weight in zip(range(first, last), weights, strict=True):
            unit = weight / total * (1 << _BITS)
            table[x, column] = int(unit + math.copysign(0.5, unit))
    return table


def _lanczos(x: float) -> float:
    return _sinc(x) * _sinc(x / 3) if -3.0 <= x < 3.0 else 0.0


def _sinc(x: float) -> float:
    return 1.0 if x == 0.0 else math.sin(x * math.pi) / (x * math.pi)


@lru_cache(maxsize=64)
def _agrees(width: int, height: int) -> bool:
    """Whether this Pillow scales such pictures as is done here; asked once for each size."""
    noise = np.random.default_rng(0).integers(0, 256, (2, height, width), np.uint8)
    extremes = np.where(noise[1] < 128, 0, 255).astype(np.uint8)
    return all(
        np.array_equal(
            _scaled(grey),
            np.asarray(Image.fromarray(grey).resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)),
        )
        for grey in (noise[0], extremes)
    )


def _cosines() -> npt.NDArray[np.float64]:
    """[8, 32], scaled as scipy.fftpack.dct of type 2."""
    order, place = np.arange(_LOW)[:, None], np.arange(_SIDE)[None, :]
    return np.asarray(2 * np.cos(np.pi * order * (2 * place + 1) / (2 * _SIDE)))


_COSINES = _cosines()


def _hash(small: Pixels) -> str:
    low = (_COSINES @ small @ _COSINES.T).ravel()
    ordered = np.sort(low)
    above = low - (ordered[31] + ordered[32]) / 2
    if np.abs(above).min() < _UNSURE:  # a tie, as in a flat picture: rounding decides
        import imagehash

        return str(imagehash.phash(Image.fromarray(small)))
    return np.packbits(above > 0).tobytes().hex()
