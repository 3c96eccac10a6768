"""The perceptual hash is imagehash's, bit for bit, whatever the picture."""

from __future__ import annotations

from pathlib import Path

import imagehash
import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipeline import phash as module
from data_pipeline.phash import phash


def _picture(seed: int, height: int, width: int, kind: str) -> np.ndarray:
    random = np.random.default_rng(seed)
    if kind == "noise":
        return random.integers(0, 256, (height, width, 3), np.uint8)
    if kind == "extremes":
        return random.choice(np.array([0, 255], np.uint8), (height, width, 3))
    if kind == "flat":
        return np.full((height, width, 3), random.integers(0, 256, 3), np.uint8)
    if kind == "stripes":  # many coefficients are zero: ties
        row = np.where(np.arange(width) // max(1, width // 8) % 2, 255, 0).astype(np.uint8)
        return np.repeat(np.broadcast_to(row, (height, width))[..., None], 3, 2).copy()
    side = int(random.integers(2, 12))
    small = random.integers(0, 256, (side, side, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


_KINDS = st.sampled_from(["noise", "extremes", "flat", "stripes", "smooth"])
_SIDES = st.one_of(st.integers(1, 90), st.sampled_from([32, 64, 256, 320, 639, 640, 641, 700]))


@settings(max_examples=150)
@given(st.integers(0, 2**32), _SIDES, _SIDES, _KINDS)
def test_equals_imagehash(seed: int, height: int, width: int, kind: str) -> None:
    pixels = _picture(seed, height, width, kind)
    assert phash(pixels) == str(imagehash.phash(Image.fromarray(pixels)))


def test_equals_imagehash_of_stored_squares() -> None:
    """The usual size, after JPEG, with and without a fourth channel."""
    for seed in range(60):
        pixels = _picture(seed, 256, 256, "smooth" if seed % 2 else "noise")
        jpeg = simplejpeg.encode_jpeg(pixels, 95, "RGB", "420")
        wanted = str(imagehash.phash(Image.fromarray(simplejpeg.decode_jpeg(jpeg))))
        assert phash(simplejpeg.decode_jpeg(jpeg)) == wanted
        assert phash(simplejpeg.decode_jpeg(jpeg, "RGBX")) == wanted


def test_equals_imagehash_of_photographs(shared_data: Path) -> None:
    for path in sorted((shared_data / "photos").rglob("*.jpg")):
        pixels = simplejpeg.decode_jpeg(path.read_bytes(), min_height=256, min_width=256)
        assert phash(pixels) == str(imagehash.phash(Image.fromarray(pixels)))


def test_scaling_is_the_fast_one_where_it_may_be() -> None:
    assert all(
        module._agrees(w, h) for w, h in ((256, 256), (32, 32), (640, 7), (1, 1), (300, 256))
    )


def test_another_pillow_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were Pillow's rounding another one, Pillow itself would be asked."""
    pixels = _picture(3, 200, 211, "smooth")
    monkeypatch.setattr(module, "_scaled", lambda grey: np.zeros((32, 32), np.uint8))
    module._agrees.cache_clear()
    assert phash(pixels) == str(imagehash.phash(Image.fromarray(pixels)))
    module._agrees.cache_clear()
