"""One step of the reverse process, between two noise levels that need not be neighbours.

`now` and `then` are ᾱ before and after the step, `then` above `now`; with them all formulas hold
for spaced timesteps (Nichol & Dhariwal 2021, section 4).
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

Level = TypeVar("Level", float, Tensor)


def posterior_weights(now: Level, then: Level) -> tuple[Level, Level]:
    """Of x_0 and of x_now in the mean of q(x_then | x_now, x_0), each times 1 - `now`.

    Ho et al. 2020, eq. 7.
    """
    alpha = now / then
    return then**0.5 * (1 - alpha), alpha**0.5 * (1 - then)


def posterior_variance(now: Level, then: Level) -> Level:
    """β̃, the variance of q(x_then | x_now, x_0) and the smallest of the reverse step."""
    return (1 - then) / (1 - now) * (1 - now / then)


def log_variance(fraction: Tensor, smallest: Tensor, largest: Tensor) -> Tensor:
    """log σ² between log β̃ (`smallest`) and log β: Nichol & Dhariwal 2021, eq. 15."""
    return torch.lerp(smallest, largest, fraction)
