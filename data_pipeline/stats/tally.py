"""Counts of a quantity's values, exact to a step: quantiles and histograms from little memory."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass
class Tally:
    """How often each multiple of `step` occurred; memory follows the different ones."""

    step: float = 1.0
    places: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def add(self, values: npt.NDArray[np.generic]) -> None:
        """Counts values, [n], rounded to the step; those that are not finite are left out."""
        wide = values.astype(np.float64)
        new = np.rint(wide[np.isfinite(wide)] / self.step).astype(np.int64)
        places, counts = np.unique(new, return_counts=True)
        merged, where = np.unique(np.concatenate([self.places, places]), return_inverse=True)
        total = np.zeros(len(merged), np.int64)
        np.add.at(total, where.reshape(-1), np.concatenate([self.counts, counts]))
        self.places, self.counts = merged, total

    @property
    def values(self) -> npt.NDArray[np.float64]:
        """The different values, ascending, [k]."""
        return np.asarray(np.round(self.places * self.step, 9), np.float64)

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    def quantile(self, share: float) -> float:
        """The smallest value with at least `share` of all at or below it."""
        if not self.total:
            raise ValueError("quantile: nothing was counted")
        reached = np.cumsum(self.counts) >= share * self.total
        return float(self.values[int(reached.argmax())])

    def mean(self) -> float:
        """The mean of the rounded values."""
        return float((self.values * self.counts).sum() / self.total)

    def summary(self) -> dict[str, float]:
        """Count, extremes, quantiles, mean."""
        named = {"min": 0.0, "p05": 0.05, "median": 0.5, "p95": 0.95, "max": 1.0}
        quantiles = {name: self.quantile(share) for name, share in named.items()}
        return {"count": self.total, **quantiles, "mean": round(self.mean(), 6)}
