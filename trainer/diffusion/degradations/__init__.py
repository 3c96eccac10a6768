"""Corruptions of an upsampler's conditioning: Gaussian blur, and the BSR chain.

Every kind and every strength is drawn per picture, never per batch.
"""

from .chain import DegradationConfig, degrade
from .resampling import enlarge, shrink

__all__ = ["DegradationConfig", "degrade", "enlarge", "shrink"]
