"""Sheets: pictures keep their proportions, and captions lie beside none of them."""

import numpy as np
import pytest
from PIL import Image

from trainer.sampling.sheet import caption_sheet

RED = (255, 0, 0)


def red_box(sheet: Image.Image) -> tuple[int, int]:
    """Width and height of what is red."""
    pixels = np.asarray(sheet).astype(int)
    rows, columns = np.nonzero((pixels[:, :, 0] > 200) & (pixels[:, :, 1:].max(axis=2) < 60))
    return int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1


@pytest.mark.parametrize(
    ("size", "expected"),
    [((64, 64), (64, 64)), ((64, 128), (32, 64)), ((160, 64), (64, 26)), ((16, 8), (64, 32))],
)
def test_a_picture_keeps_its_proportions(size: tuple[int, int], expected: tuple[int, int]) -> None:
    picture = np.asarray(Image.new("RGB", size, RED))
    bare = caption_sheet([picture], [""], 1, side=64)
    told = caption_sheet([picture], ["what it shows"], 1, side=64)
    width, height = red_box(bare)
    assert abs(width - expected[0]) <= 2  # an outline is around it
    assert abs(height - expected[1]) <= 2
    assert red_box(told) == (width, height)  # no letter lies on it
    changed = np.nonzero((np.asarray(bare) != np.asarray(told)).any(axis=(1, 2)))[0]
    assert changed.min() > 8 + expected[1]


def test_rows_are_as_high_as_the_tallest() -> None:
    wide, tall = (np.asarray(Image.new("RGB", size, RED)) for size in ((64, 16), (16, 64)))
    flat, high = (caption_sheet([wide, other], ["", ""], 2, 64) for other in (wide, tall))
    assert high.height - flat.height == 64 - 16
