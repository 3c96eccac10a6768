"""How much of two sets of features overlaps, told by balls around each feature.

Improved precision and recall (Kynkäänniemi et al. 2019) and density and coverage (Naeem et al.
2020). A ball reaches to the k-th nearest other feature of its own set. Distances are computed a
block at a time: memory is that of the features and of one block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK = 1 << 24  # distances at once: 128 MB
_ROUNDING = 1e-12  # of squared distances, which are differences; that of float32 features is more


@dataclass(frozen=True)
class Overlap:
    """precision: share of generated features in a real ball; recall: of real ones in a generated
    ball. density: real balls around a generated feature, in units of k; coverage: share of real
    balls with a generated feature in it."""

    precision: float
    recall: float
    density: float
    coverage: float


def overlap(real: Tensor, generated: Tensor, k: int = 3) -> Overlap:
    """Of features [N, D] and [M, D].

    Raises ValueError when a set has no k-th nearest other feature.
    """
    for name, features in (("real", real), ("generated", generated)):
        if len(features) <= k:
            raise ValueError(f"{name}: got {len(features)} features, expected more than {k}")
    middle = real.double().mean(dim=0)  # far from the origin small differences are lost
    one, other = real.double() - middle, generated.double() - middle
    of_real, of_generated = _reaches(one, k), _reaches(other, k)
    precise, around = 0, 0
    recalled = torch.zeros(len(one), dtype=torch.bool, device=one.device)
    covered = torch.zeros_like(recalled)
    for part, distance in _blocks(other, one):  # [m, N]
        inside = distance <= of_real
        precise += int(inside.any(dim=1).sum())
        around += int(inside.sum())
        covered |= inside.any(dim=0)
        recalled |= (distance <= of_generated[part, None]).any(dim=0)
    return Overlap(
        precision=precise / len(other),
        recall=float(recalled.double().mean()),
        density=around / (k * len(other)),
        coverage=float(covered.double().mean()),
    )


def _reaches(features: Tensor, k: int) -> Tensor:
    """Squared distance to the k-th nearest other feature, and what rounding may add. [N]"""
    found = []
    for part, distance in _blocks(features, features):
        rows = torch.arange(len(distance), device=distance.device)
        distance[rows, rows + part.start] = torch.inf  # a feature is not its own neighbour
        found.append(distance.kthvalue(k, dim=1).values)
    return torch.cat(found) + _ROUNDING * features.square().sum(dim=1).max()


def _blocks(first: Tensor, second: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Squared distances of some rows of `first` to all of `second`, float64 [n, M]."""
    rows = max(1, _BLOCK // len(second))
    lengths = second.square().sum(dim=1)  # [M]
    for start in range(0, len(first), rows):
        part = slice(start, min(start + rows, len(first)))
        some = first[part]
        yield part, some.square().sum(dim=1)[:, None] + lengths - 2 * some @ second.T
