"""DDIM, and the same way back from a picture to its noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ..denoiser import Denoiser
from ..process import Diffusion
from .walk import Step, StepNoise, walk


def ddim(
    denoise: Denoiser,
    diffusion: Diffusion,
    x: Tensor,
    timesteps: Sequence[int],
    eta: float = 0.0,
    step_noise: StepNoise | None = None,
) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12 and 16) from x_T to an estimate of x_0.

    η = 0 is deterministic, η = 1 has the variance of ancestral sampling. η > 0 needs `step_noise`.
    """
    if eta > 0 and step_noise is None:
        raise ValueError(f"eta: got {eta}, which needs step_noise")
    for step in walk(diffusion, timesteps):
        x0 = denoise(x, step.batch(x)).x0
        if step.last:
            break
        now, then = step.now, step.then
        epsilon = diffusion.epsilon_from(x0, x, step.batch(x))
        sigma = eta * ((1 - then) / (1 - now) * (1 - now / then)) ** 0.5
        x = then**0.5 * x0 + max(1 - then - sigma**2, 0.0) ** 0.5 * epsilon
        if eta > 0 and step_noise is not None:
            x = x + sigma * step_noise(step.number)
    return x0


def ddim_inversion(
    denoise: Denoiser,
    diffusion: Diffusion,
    x0: Tensor,
    timesteps: Sequence[int],
    refinements: int = 0,
) -> Tensor:
    """The x_T from which `ddim` with η = 0 and the same timesteps comes to x_0, fp32 [B, …].

    Each step back needs the noise that the network sees at its end, where it is not yet. It takes
    that of its beginning (Dhariwal & Nichol 2021, appendix F), which errs as DDIM does between
    timesteps; every refinement asks once more at the end just found, and steps anew. The denoiser
    must not clip: what is clipped has no way back.
    """
    if refinements < 0:
        raise ValueError(f"refinements: got {refinements}, expected at least 0")

    def noise_seen(x: Tensor, step: Step) -> Tensor:
        return diffusion.epsilon_from(denoise(x, step.batch(x)).x0, x, step.batch(x))

    def back(x: Tensor, epsilon: Tensor, step: Step) -> Tensor:
        clean = x - math.sqrt(1 - step.then) * epsilon
        return math.sqrt(step.now / step.then) * clean + math.sqrt(1 - step.now) * epsilon

    x, begun = x0.float(), None
    for step in reversed(walk(diffusion, timesteps)):
        # A clean picture has no timestep of its own: there the network is asked as at the end.
        there = back(x, noise_seen(x, begun or step), step)
        for _ in range(refinements):
            there = back(x, noise_seen(there, step), step)
        x, begun = there, step
    return x
