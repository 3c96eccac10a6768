"""The arithmetic of the comparisons: intervals, paired differences, distances, best of several."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.evaluation.fid import Moments, frechet_distance

Floats = NDArray[np.float64]
_Z = 1.959964  # 95 % of a normal distribution lie within so many deviations
_RESAMPLES = 100


@dataclass(frozen=True)
class Figure:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float
    count: int


def share(right: NDArray[np.bool_] | Floats) -> Figure:
    """A share with Wilson's interval (1927), which stays within 0 and 1.

    A value a caption; where it gives several answers, the share of them.
    """
    values = np.asarray(right, float)
    n, p = len(values), float(values.mean())
    middle = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n * n)) / (1 + _Z**2 / n)
    return Figure(p, middle - half, middle + half, len(values))


def mean(values: Floats) -> Figure:
    """A mean with the interval that its standard error gives."""
    return _normal(float(values.mean()), _error(values), len(values))


def difference(values: Floats, other: Floats) -> Figure:
    """The mean of the differences of pairs, `values` - `other`."""
    return mean(np.asarray(values, float) - np.asarray(other, float))


def frechet_figure(made: Tensor, true: Tensor, than: Tensor | None = None) -> Figure:
    """The distance of `made` [N, D] to `true` [N, D], less that of `than` [N, D] where it is given.

    The interval is that of a bootstrap over captions: a row of all three is of one caption. Only
    its width is used, since sets with repeated rows are farther apart than sets without.
    """

    def value(rows: Tensor) -> float:
        found = _distance(made[rows], true[rows])
        return found if than is None else found - _distance(than[rows], true[rows])

    n = len(made)
    chance = torch.Generator().manual_seed(0)
    drawn = [value(torch.randint(n, (n,), generator=chance)) for _ in range(_RESAMPLES)]
    return _normal(value(torch.arange(n)), float(np.std(drawn, ddof=1)), n)


def apart(features: Tensor) -> Floats:
    """Mean of 1 - cosine over all pairs of a caption's pictures, [K, N, D] unit length → [N]."""
    k = len(features)
    cosines = torch.einsum("ind,jnd->nij", features.double(), features.double())
    return np.asarray(1 - (cosines.sum(dim=(1, 2)) - k) / (k * (k - 1)))


def expected_best(scores: Floats, values: Floats, k: int) -> Floats:
    """What `values` [K, N] has where the highest of k of K `scores` [K, N] is taken. [N]

    The mean over all choices of k candidates: the one of rank r from below is the best of
    C(r - 1, k - 1) of them.
    """
    total = len(scores)
    order = np.argsort(scores, axis=0, kind="stable")
    ranked = np.take_along_axis(np.asarray(values, float), order, axis=0)
    weights = np.array([math.comb(rank, k - 1) for rank in range(total)]) / math.comb(total, k)
    return np.asarray(weights @ ranked, float)


def _distance(first: Tensor, second: Tensor) -> float:
    return frechet_distance(Moments.of(first), Moments.of(second))


def _error(values: Floats) -> float:
    """Standard error of a mean; none of a single value is known."""
    return float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _normal(value: float, error: float, count: int) -> Figure:
    return Figure(value, value - _Z * error, value + _Z * error, count)
