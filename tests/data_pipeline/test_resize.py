"""Each mode gives the sides that it promises, and the middle stays in the middle."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.resize import fit, needed_sides

sides = st.integers(1, 200)


@given(sides, sides, st.integers(8, 64), st.booleans())
def test_modes_give_their_sides(width: int, height: int, size: int, only_if_bigger: bool) -> None:
    picture = np.full((height, width, 3), 9, np.uint8)
    crop = fit(picture, "center_crop", size, only_if_bigger)
    expected = min(size, width, height) if only_if_bigger else size
    assert crop.shape == (expected, expected, 3)
    assert fit(picture, "none", size, only_if_bigger).shape == picture.shape
    assert fit(picture, "border", size, only_if_bigger).shape == (size, size, 3)
    if not only_if_bigger:
        assert min(fit(picture, "keep_ratio", size, False).shape[:2]) == size
        assert max(fit(picture, "keep_ratio_largest", size, False).shape[:2]) == size
    for mode in ("center_crop", "keep_ratio", "keep_ratio_largest", "none"):
        assert (fit(picture, mode, size, only_if_bigger) == 9).all()


@pytest.mark.parametrize(("width", "height"), [(90, 30), (30, 90)])
def test_the_middle_is_cropped(width: int, height: int) -> None:
    picture = np.zeros((height, width, 3), np.uint8)
    top, left = (height - 30) // 2, (width - 30) // 2
    picture[top : top + 30, left : left + 30] = 255
    assert (fit(picture, "center_crop", 30, False) == 255).all()


def test_borders_are_white_and_even() -> None:
    bordered = fit(np.zeros((10, 40, 3), np.uint8), "border", 40, False)
    assert (bordered[:15] == 255).all()
    assert (bordered[15:25] == 0).all()
    assert (bordered[25:] == 255).all()


@given(sides, sides, st.integers(8, 64), st.integers(2, 8))
def test_a_picture_decoded_no_smaller_than_asked_is_stored_at_the_same_size(
    width: int, height: int, size: int, factor: int
) -> None:
    for mode in ("center_crop", "keep_ratio", "keep_ratio_largest", "border", "none"):
        least_width, least_height = needed_sides(mode, size, width, height)
        small = (height // factor, width // factor)
        if small[1] < max(1, least_width) or small[0] < max(1, least_height):
            continue
        stored = fit(np.zeros((height, width, 3), np.uint8), mode, size, True).shape
        scaled = fit(np.zeros((*small, 3), np.uint8), mode, size, True).shape
        if mode in ("center_crop", "border"):
            assert scaled == stored
        else:  # whole factors round the aspect a little
            slack = np.maximum(1, np.multiply(stored, factor / min(small)))
            assert (np.abs(np.subtract(scaled, stored)) <= slack).all()
