"""Samplers: flat functions from noise to a sample, over any denoiser.

All take standard normal `x` [B, …] and `timesteps` that run from noisy to clean, and give their
last estimate of x_0, fp32 [B, …].
"""

from .analytic import analytic
from .ancestral import ancestral
from .ddim import ddim, ddim_inversion
from .dpm import dpm_solver
from .heun import heun
from .walk import StepNoise

__all__ = ["StepNoise", "analytic", "ancestral", "ddim", "ddim_inversion", "dpm_solver", "heun"]
