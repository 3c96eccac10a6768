"""Intervals against what can be told by hand, and against counting."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.evaluation.intervals import share_interval


@pytest.mark.parametrize("count", [1, 8, 100])
def test_all_and_none_by_hand(count: int) -> None:
    """Of none right the true share p may be such that (1 - p)^count is 2.5 %."""
    high = 1 - 0.025 ** (1 / count)
    assert share_interval(0, count) == pytest.approx((0, high))
    assert share_interval(count, count) == pytest.approx((1 - high, 1))


@given(st.integers(1, 200), st.data())
def test_it_holds_the_share_and_is_its_mirror_image(count: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, count))
    low, high = share_interval(right, count)
    assert 0 <= low <= right / count <= high <= 1
    assert share_interval(count - right, count) == pytest.approx((1 - high, 1 - low), abs=1e-9)


def test_it_holds_the_true_share_as_often_as_it_says() -> None:
    counted = np.random.default_rng(0).binomial(40, 0.3, 2000)
    intervals = {right: share_interval(right, 40) for right in set(counted.tolist())}
    held = np.mean([intervals[right].low <= 0.3 <= intervals[right].high for right in counted])
    assert held >= 0.94
