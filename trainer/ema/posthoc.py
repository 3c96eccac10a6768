"""Averages made after the run: weighted sums of stored ones that come near a wanted profile.

Karras et al. 2024 (EDM2, arXiv 2312.02696), section 3.2 and algorithm 3. The stored averages and
the wanted one are known by their weightings of time alone, so the coefficients are those of the
least squares between functions, whose inner products are known in closed form.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.config import LARGEST_STD
from trainer.ema.profiles import gamma_of

Doubles = NDArray[np.float64]

LARGEST_ERROR = 0.1  # of a profile's norm: what is farther off is not given for the one wanted
_CUT = (
    1e-13  # of the largest eigenvalue: what lies below is rounding, and would blow up coefficients
)


class Weighting(NamedTuple):
    """How an average of exponent γ weighs the time [0, updates]."""

    updates: int
    gamma: float


class Fit(NamedTuple):
    """Coefficients of the stored averages, and how far their sum is from the wanted weighting."""

    coefficients: tuple[float, ...]  # they add up to 1
    error: float  # L2 norm of the difference over that of the wanted weighting


class PostHoc:
    """Fits weighted sums of stored averages to others.

    Beside algorithm 3 the coefficients are made to add up to 1, so that a weight which never moved
    stays what it is.
    """

    def __init__(self, stored: Sequence[Weighting]) -> None:
        self._stored = list(stored)
        products = _products(self._stored, self._stored)
        self._scale = 1 / np.sqrt(np.diag(products))  # the norms grow like 1 / updates
        self._products = products * np.outer(self._scale, self._scale)
        self._inverse = np.linalg.pinv(self._products, rcond=_CUT, hermitian=True)

    def fit(self, wanted: Weighting) -> Fit:
        """The nearest weighted sum, in float64."""
        norm = _products([wanted], [wanted])[0, 0]
        target = _products(self._stored, [wanted])[:, 0] * self._scale
        solved = self._inverse @ target
        ones = self._inverse @ self._scale
        solved += ones * (1 - self._scale @ solved) / (self._scale @ ones)
        square = solved @ self._products @ solved - 2 * solved @ target + norm
        error = float(np.sqrt(max(square, 0.0) / norm))
        return Fit(tuple((solved * self._scale).tolist()), error)

    def reachable(self, updates: int) -> list[tuple[float, float]]:
        """Ranges of σ_rel, in steps of 0.001, that are met within `LARGEST_ERROR`."""
        steps = [number / 1000 for number in range(1, round(LARGEST_STD * 1000) + 1)]

        def is_met(std: float) -> bool:
            return self.fit(Weighting(updates, gamma_of(std))).error <= LARGEST_ERROR

        runs = [list(run) for met, run in groupby(steps, is_met) if met]
        return [(run[0], run[-1]) for run in runs]


def _products(some: Sequence[Weighting], others: Sequence[Weighting]) -> Doubles:
    """Inner products ∫ p_a(τ) p_b(τ) dτ of weightings, float64 [some, others].

    The integral ends with the shorter of both. With q = shorter / longer it is
    (γ_a + 1) (γ_b + 1) / (γ_a + γ_b + 1) · q^γ / longer, where γ is that of the longer.
    """
    t_a, gamma_a = np.array(some, np.float64).T[:, :, None]  # [some, 1]
    t_b, gamma_b = np.array(others, np.float64).T[:, None, :]  # [1, others]
    ratio = np.minimum(t_a, t_b) / np.maximum(t_a, t_b)
    of_longer = np.where(t_a < t_b, gamma_b, gamma_a)
    factor = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    products: Doubles = factor * ratio**of_longer / np.maximum(t_a, t_b)
    return products
