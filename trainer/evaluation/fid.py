"""Fréchet distance of features (Heusel et al. 2017): sums first, over all ranks, then a distance.

FID is this on 2048 features of Inception v3; on CLIP's image features it is FID_CLIP
(Kynkäänniemi et al. 2023, "The Role of ImageNet Classes in Fréchet Inception Distance").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Sums over features, in float64: those of two parts of a set add up to those of the whole."""

    count: int
    total: Tensor  # [D]
    outer: Tensor  # sum of x xᵀ, [D, D]

    @classmethod
    def none(cls, width: int) -> Moments:
        """Of no feature."""
        zeros = torch.zeros(width, dtype=torch.float64)
        return cls(0, zeros, zeros.outer(zeros))

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """Of features [N, D]."""
        wide = features.double()
        return cls(len(wide), wide.sum(dim=0), wide.T @ wide)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.total + other.total, self.outer + other.outer)

    def mean(self) -> Tensor:
        """[D]"""
        return self.total / self.count

    def covariance(self) -> Tensor:
        """Without bias: over count - 1. [D, D]

        Raises:
            ValueError: of fewer than two features there is none.
        """
        if self.count < 2:
            raise ValueError(f"features: got {self.count}, expected at least 2 for a covariance")
        mean = self.mean()
        return (self.outer - self.count * mean.outer(mean)) / (self.count - 1)


def frechet_distance(first: Moments, second: Moments) -> float:
    """|μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁ Σ₂)^½) of the two normal distributions, ≥ 0.

    The trace of the root is that of (Σ₁^½ Σ₂ Σ₁^½)^½, which is symmetric, so that its eigenvalues
    are real whatever the rank.
    Raises ValueError for sets of fewer than two features.
    """
    one, other = first.covariance(), second.covariance()
    apart = (first.mean() - second.mean()).square().sum()
    root = _root(one)
    inner = torch.linalg.eigvalsh(root @ other @ root).clamp(min=0).sqrt().sum()
    return max(float(apart + one.trace() + other.trace() - 2 * inner), 0.0)


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root
