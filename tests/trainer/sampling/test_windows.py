"""Windows of an outpainting: everything is painted, each from a border that is there."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.errors import UserError
from trainer.sampling.windows import Box, painted_windows


@st.composite
def canvases(draw: st.DrawFn) -> tuple[tuple[int, int], Box, int, int]:
    side = draw(st.integers(2, 9))
    step = draw(st.integers(1, side - 1))
    height, width = draw(st.integers(side, 40)), draw(st.integers(side, 40))
    top, left = draw(st.integers(0, height - side)), draw(st.integers(0, width - side))
    return (height, width), Box(top, left, top + side, left + side), side, step


@given(canvases())
def test_all_is_painted_each_window_from_what_is_there(
    case: tuple[tuple[int, int], Box, int, int],
) -> None:
    canvas, known, side, step = case
    there = np.zeros(canvas, bool)
    there[known.top : known.bottom, known.left : known.right] = True
    for top, left, bottom, right in painted_windows(canvas, known, side, step):
        assert (bottom - top, right - left) == (side, side)
        assert 0 <= top < bottom <= canvas[0]
        assert 0 <= left < right <= canvas[1]
        window = there[top:bottom, left:right]
        assert window.sum() >= side - step  # a border to go on from
        window[:] = True
    assert there.all()


def test_a_picture_as_large_as_the_canvas_needs_none() -> None:
    assert list(painted_windows((4, 4), Box(0, 0, 4, 4), 4, 2)) == []


@pytest.mark.parametrize("canvas", [(3, 8), (8, 3)])
def test_a_canvas_that_is_too_small_is_refused(canvas: tuple[int, int]) -> None:
    with pytest.raises(UserError, match="expected at least 4×4 pixels"):
        list(painted_windows(canvas, Box(0, 0, 4, 4), 4, 2))
