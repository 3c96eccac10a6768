"""Measures of pictures and embeddings that need no trained judge."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of pictures in [-1, 1], [B, C, H, W]. Returns [B]."""
    error = torch.square(first.float() - second.float()).flatten(1).mean(dim=1)
    return 10 * torch.log10(4.0 / error.clamp(min=1e-10))  # the peak is 2 high


@dataclass(frozen=True)
class PriorScores:
    """How near predicted image embeddings come to the true ones, beside what is free to have."""

    cosine: float
    cosine_of_text: float  # of the text embedding itself
    cosine_of_mean: float  # of the mean training embedding
    recall_at_1: float  # the true embedding is the nearest of all
    recall_at_1_of_text: float
    count: int


def score_prior(predicted: Tensor, true: Tensor, text: Tensor, mean: Tensor) -> PriorScores:
    """predicted, true, text [N, D] of unit length, row by row the same pair; mean [D]."""
    direction = mean / mean.norm()
    return PriorScores(
        cosine=float((predicted * true).sum(dim=1).mean()),
        cosine_of_text=float((text * true).sum(dim=1).mean()),
        cosine_of_mean=float((true @ direction).mean()),
        recall_at_1=_recall_at_1(predicted, true),
        recall_at_1_of_text=_recall_at_1(text, true),
        count=len(true),
    )


def _recall_at_1(queries: Tensor, gallery: Tensor) -> float:
    nearest = (queries @ gallery.T).argmax(dim=1)
    return float((nearest == torch.arange(len(queries), device=nearest.device)).float().mean())
