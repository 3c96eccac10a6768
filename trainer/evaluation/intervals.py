"""How sure a share is that was counted on so many."""

from __future__ import annotations

from typing import NamedTuple

from scipy.stats import binomtest


class Interval(NamedTuple):
    """Where the true share lies, 95 times of 100 or more often (Clopper and Pearson 1934)."""

    low: float
    high: float


def share_interval(right: int, count: int) -> Interval:
    """Of `right` among `count` > 0, drawn independently."""
    found = binomtest(right, count).proportion_ci(0.95, method="exact")
    return Interval(float(found.low), float(found.high))
