"""DPM-Solver++(2M): second order from two estimates, at one call of the network a step."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ..denoiser import Denoiser
from ..process import Diffusion
from .walk import walk


def dpm_solver(
    denoise: Denoiser, diffusion: Diffusion, x: Tensor, timesteps: Sequence[int]
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2), deterministic.

    The estimate of x_0 is continued on a line over λ, half the log of the signal-to-noise ratio,
    from the last two. The first step has one only; the last, to x_0 itself, is first order too.
    Timesteps should be `trailing`: a grid down to t = 0 ends with a step so long in λ that the line
    leads astray.
    """
    before: Tensor | None = None  # the last estimate, and how far it lies back in λ
    width = math.inf
    for step in walk(diffusion, timesteps):
        x0 = denoise(x, step.batch(x)).x0
        if step.last:
            break
        next_width = _half_log_snr(step.then) - _half_log_snr(step.now)
        ahead = x0
        if before is not None:
            ahead = x0 + next_width / (2 * width) * (x0 - before)
        shrunk = ((1 - step.then) / (1 - step.now)) ** 0.5
        x = shrunk * x + (step.then**0.5 - step.now**0.5 * shrunk) * ahead
        before, width = x0, next_width
    return x0


def _half_log_snr(alpha: float) -> float:
    """λ; minus infinity where no signal is left."""
    return 0.5 * math.log(alpha / (1 - alpha)) if alpha > 0 else -math.inf
