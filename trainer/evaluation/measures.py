"""Measures of pictures and embeddings that need no trained judge."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_AT_ONCE = 4096  # rows that are compared with all others


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
        recall_at_1=recall_at_1(predicted, true),
        recall_at_1_of_text=recall_at_1(text, true),
        count=len(true),
    )


def recall_at_1(queries: Tensor, gallery: Tensor) -> float:
    """Share of queries [N, D] whose nearest of the gallery [N, D], unit length, is their own."""
    nearest = torch.cat(
        [(part @ gallery.T).argmax(dim=1) for part in torch.split(queries, _AT_ONCE)]
    )
    return float((nearest == torch.arange(len(queries), device=nearest.device)).float().mean())


def mean_cosine(first: Tensor, second: Tensor) -> float:
    """Mean over rows of unit length, [N, D] each."""
    return float((first * second).sum(dim=1).mean())


def clip_score(pictures: Tensor, captions: Tensor) -> float:
    """Mean of 100 · max(cosine, 0) (Hessel et al. 2021, as it is printed), [N, D] each."""
    return float(100 * (pictures * captions).sum(dim=1).clamp(min=0).mean())


def diversity(pictures: Tensor) -> float:
    """Mean of 1 - cosine between two pictures of one caption: unit embeddings [captions, R, D].

    Raises ValueError when there are not two.
    """
    repeats = pictures.shape[1]
    if len(pictures) == 0 or repeats < 2:
        raise ValueError(f"pictures: got {list(pictures.shape[:2])}, expected two of each caption")
    cosines = pictures.double() @ pictures.double().transpose(1, 2)  # [captions, R, R]
    others = cosines.sum() - cosines.diagonal(dim1=1, dim2=2).sum()
    return float(1 - others / (len(pictures) * repeats * (repeats - 1)))
