"""Whether a loss lies far above those before it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

_NORMAL = 1.4826  # deviations of a normal distribution in one median absolute deviation
_LEAST_SPREAD = 1e-6  # of the median: losses that hardly move must not make every one a spike


def robust_z(losses: Sequence[float], loss: float) -> float:
    """How many deviations `loss` lies above the median of `losses`.

    The deviation is the median absolute one, which earlier spikes do not widen.
    """
    middle = median(losses)
    spread = _NORMAL * median(abs(other - middle) for other in losses)
    return (loss - middle) / max(spread, _LEAST_SPREAD * abs(middle), 1e-12)
