"""How an average weighs the past: constant decay, or a power function of time.

Power functions are those of Karras et al. 2024 (EDM2, arXiv 2312.02696), section 3.1. After t
updates the weight of time τ in [0, t] is (γ + 1) τ^γ / t^(γ + 1) (eq. 1): it scales with the length
of the run, so its width is given relative to it, by the standard deviation σ_rel (eq. 3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from trainer.config import EmaConfig

KIND = "ema"  # of the average with constant decay, the one that sampling uses unless told otherwise

Decay = Callable[[int], float]
"""Updates so far → the decay of the next one."""


@dataclass(frozen=True)
class Constant:
    """The decay of update u (from 0) is min(decay, (1 + u) / (warmup + u)), so that early weights
    are forgotten soon."""

    value: float
    warmup: float

    def decay(self, updates: int) -> float:
        """The decay of the next update after `updates` of them."""
        if self.warmup == 0:
            return self.value
        return min(self.value, (1 + updates) / (self.warmup + updates))


@dataclass(frozen=True)
class Power:
    """A power function of relative standard deviation `std`.

    Weights are taken as constant between two updates, for which the recurrence (eq. 2) is exact.
    """

    std: float

    @cached_property
    def gamma(self) -> float:
        """The exponent γ."""
        return gamma_of(self.std)

    def decay(self, updates: int) -> float:
        """β of the next update after `updates` of them; 0 at the first."""
        return float((1 - 1 / (updates + 1)) ** (self.gamma + 1))


def profiles_of(config: EmaConfig) -> dict[str, Decay]:
    """Decays by the kind that checkpoints know each average by."""
    powers = {power_kind(std): Power(std).decay for std in config.powers}
    return {KIND: Constant(config.decay, config.warmup).decay, **powers}


def power_kind(std: float) -> str:
    """The kind of a power function's average; `std` has no more than three decimals."""
    return f"{KIND}_{std:.3f}"


def std_of_kind(kind: str) -> float:
    """The σ_rel that a power function's kind tells."""
    return float(kind.removeprefix(f"{KIND}_"))


def gamma_of(std: float) -> float:
    """The exponent γ > 0 of the power function whose σ_rel is `std`, in (0, 12^-0.5).

    σ_rel = (γ + 1)^(1/2) (γ + 2)^-1 (γ + 3)^(-1/2) (eq. 3), so γ is the largest root of the cubic
    (γ + 2)² (γ + 3) − (γ + 1) / σ_rel². It is convex there: from the right Newton's
    steps only fall.
    """
    inverse = std**-2
    gamma = 1 / std  # right of the root, since σ_rel < 1 / γ
    while True:
        value = (gamma + 2) ** 2 * (gamma + 3) - (gamma + 1) * inverse
        slope = (gamma + 2) * (3 * gamma + 8) - inverse
        lower = gamma - value / slope
        if lower >= gamma:  # rounding has the last word
            return gamma
        gamma = lower
