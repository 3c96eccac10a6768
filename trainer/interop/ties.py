"""Which tensors of another project's network make up each tensor of ours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

Ties = Mapping[str, tuple[str, ...]]
"""Our name → their names: ours is theirs one below the other, in equal parts, along dimension 0."""


def join(kind: str, ties: Ties, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their state dict under our names.

    Raises:
        ValueError: a tensor is missing or left over.
    """
    _complete(kind, (name for names in ties.values() for name in names), theirs)
    return {
        name: torch.cat([theirs[part] for part in parts]) if len(parts) > 1 else theirs[parts[0]]
        for name, parts in ties.items()
    }


def part(kind: str, ties: Ties, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under their names.

    Raises:
        ValueError: a tensor is missing or left over.
    """
    _complete(kind, ties, ours)
    return {
        name: piece.clone(memory_format=torch.contiguous_format)  # safetensors wants no views
        for ours_name, names in ties.items()
        for name, piece in zip(names, ours[ours_name].chunk(len(names)), strict=True)
    }


def turned(rows: Tensor, outer: int) -> Tensor:
    """Rows that are numbered by (outer, inner) numbered by (inner, outer)."""
    return rows.reshape(outer, -1, *rows.shape[1:]).transpose(0, 1).flatten(0, 1)


def _complete(kind: str, wanted: Iterable[str], found: Mapping[str, Tensor]) -> None:
    names = set(wanted)
    for name in sorted(names - set(found)):
        raise ValueError(f"{kind}: the weights lack {name}")
    for name in sorted(set(found) - names):
        raise ValueError(f"{kind}: the weights have {name}, of which the config knows nothing")
