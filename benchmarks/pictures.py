"""JPEGs for benchmarks: crops of photographs, or of synthesised scenes with natural statistics.

Synthesised scenes are dead leaves: discs whose radii r are distributed as r⁻³ hide one another, and
each has a texture whose spectrum falls as 1/f (Lee, Mumford and Huang 2001). Sizes of files, edges
and flat parts come out like those of photographs; `python -m benchmarks.pictures` prints them.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

Image = npt.NDArray[np.uint8]  # [H, W, 3], RGB
SIDE = 512
MEDIAN_BYTES = 84_000
_SCENES = 24  # of which all crops are cut
_SCENE_SIDE = 1400
_TEXT = (
    "a photo of an old red boat on the quiet river near small green hills under grey clouds with "
    "two people walking along wooden bridge while birds fly over yellow fields and white houses "
    "stand between tall trees in warm evening light"
)


def jpegs(
    count: int, seed: int = 0, photos: Path | None = None, side: int = SIDE
) -> Iterator[bytes]:
    """`count` JPEGs of side², cut from the pictures below `photos` or from synthesised scenes.

    One quality for all, chosen so that the median of a sample has MEDIAN_BYTES (scaled by area).
    """
    scenes = _photographs(photos, side) if photos else [scene(seed, i) for i in range(_SCENES)]
    sample = [_crop(scenes, seed, i, side) for i in range(192)]
    quality = _quality(sample, MEDIAN_BYTES * side * side // SIDE**2)
    for index in range(count):
        yield _encoded(_crop(scenes, seed, index, side), quality)


def caption(index: int) -> str:
    """Six to sixteen words, another for every index."""
    random = np.random.default_rng((7, index))
    words = random.choice(_TEXT.split(), int(random.integers(6, 16)))
    return f"{' '.join(words)} {index}"


def scene(seed: int, index: int, side: int = _SCENE_SIDE) -> Image:
    """Dead leaves with 1/f textures, [side, side, 3]."""
    random = np.random.default_rng((seed, index))
    tints = np.stack([_texture(random, side) for _ in range(3)], -1)  # colours vary less than light
    canvas = np.asarray(120 + 40 * _texture(random, side)[..., None] + 12 * tints, np.float32)
    rough = 10.0 + 22.0 * random.random()
    grain = [_texture(random, side) for _ in range(4)]
    for _ in range(900):
        radius = min(side / 2, 6.0 / max(1e-4, float(random.random())) ** 0.5 * side / 1000)
        x, y = random.integers(0, side, 2)
        mask = np.zeros((side, side), np.uint8)
        cv2.circle(mask, (int(x), int(y)), max(2, int(radius)), 255, -1)
        x0, x1 = max(0, int(x - radius) - 1), int(x + radius) + 2
        y0, y1 = max(0, int(y - radius) - 1), int(y + radius) + 2
        inside = mask[y0:y1, x0:x1] > 0
        colour = random.normal(120, 45) + random.normal(0, 20, 3)
        leaf = grain[int(random.integers(4))][y0:y1, x0:x1, None] * rough * random.random() + colour
        canvas[y0:y1, x0:x1][inside] = leaf[inside]
    canvas += random.normal(0, 2.0, canvas.shape)  # as a sensor adds
    soft = cv2.GaussianBlur(canvas, (0, 0), 0.7)  # as a lens leaves edges
    return np.asarray(np.clip(soft, 0, 255), np.uint8)


def _texture(random: np.random.Generator, side: int) -> npt.NDArray[np.float32]:
    """Unit variance, amplitude 1/f."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :])
    frequency[0, 0] = np.inf
    noise = np.fft.rfft2(random.standard_normal((side, side))) / frequency
    field = np.fft.irfft2(noise, (side, side))
    return np.asarray(field / field.std(), np.float32)


def _photographs(folder: Path, side: int) -> list[Image]:
    found: list[Image] = []
    for path in sorted(folder.rglob("*.jp*g")):
        data = path.read_bytes()
        if simplejpeg.is_jpeg(data):
            pixels = simplejpeg.decode_jpeg(data, "RGB")
            scale = max(1.0, 1.25 * side / min(pixels.shape[:2]))
            found.append(cv2.resize(pixels, None, fx=scale, fy=scale) if scale > 1 else pixels)
    if not found:
        raise SystemExit(f"--pictures: {folder} holds no JPEG")
    return found


def _crop(scenes: list[Image], seed: int, index: int, side: int) -> Image:
    """A square of 1 to 1.6 times `side`, scaled to it, perhaps mirrored."""
    random = np.random.default_rng((seed, 1, index))
    whole = scenes[index % len(scenes)]
    cut = min(int(side * (1 + 0.6 * random.random())), *whole.shape[:2])
    y = int(random.integers(0, whole.shape[0] - cut + 1))
    x = int(random.integers(0, whole.shape[1] - cut + 1))
    part = whole[y : y + cut, x : x + cut]
    part = part[:, ::-1] if random.random() < 0.5 else part
    scaled: Any = cv2.resize(part, (side, side), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(scaled)


def _encoded(pixels: Image, quality: int) -> bytes:
    data: bytes = simplejpeg.encode_jpeg(pixels, quality, "RGB", "420")
    return data


def _quality(sample: list[Image], wanted: int) -> int:
    """The least quality whose median size reaches `wanted`."""

    def median(quality: int) -> float:
        return statistics.median(len(_encoded(pixels, quality)) for pixels in sample)

    return least(median, wanted, 40, 98)


def least(rising: Callable[[int], float], wanted: float, low: int, high: int) -> int:
    """The least whole number in low … high for which `rising` reaches `wanted`; else `high`."""
    while low < high:
        middle = (low + high) // 2
        if rising(middle) < wanted:
            low = middle + 1
        else:
            high = middle
    return low


def main() -> None:
    """Print the sizes of both kinds of JPEG; with --out, write the pictures there."""
    parser = argparse.ArgumentParser(description="What the benchmarks' JPEGs are like.")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--pictures", type=Path, default=None, help="a folder of photographs")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    made = list(jpegs(options.count, photos=options.pictures))
    low, median, high = np.percentile([len(data) for data in made], (5, 50, 95)).tolist()
    sizes = f"{low:,.0f} / {median:,.0f} / {high:,.0f}"
    print(f"{len(made)} JPEGs of {SIDE}²: {sizes} bytes (5, 50, 95 %)")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        for index, data in enumerate(made):
            (options.out / f"{index:06d}.jpg").write_bytes(data)


if __name__ == "__main__":
    main()
