"""Rates without start-up: the slope between a small run and a large one."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Slope:
    """Seconds that do not depend on the number of rows, and rows a second beyond them."""

    start: float
    rate: float


def slope(small: int, large: int, fast: Sequence[float], slow: Sequence[float]) -> Slope:
    """From medians of the seconds of runs over `small` rows (`fast`) and over `large` (`slow`).

    Raises:
        ValueError: the larger run took no longer than the smaller one.
    """
    first, second = statistics.median(fast), statistics.median(slow)
    if large <= small or second <= first:
        raise ValueError(f"got {first:.2f} s for {small} rows and {second:.2f} s for {large}")
    rate = (large - small) / (second - first)
    return Slope(first - small / rate, rate)
