"""Inception Score (Salimans et al. 2016) of generated pictures."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_SPLITS = 10  # as in the paper


class InceptionScore(NamedTuple):
    """Over all pictures, and mean and standard deviation over ten parts of them.

    The parts are what papers print; they are lower than the whole, the more so the fewer pictures
    there are. Of fewer than ten pictures there are as many parts as pictures.
    """

    whole: float
    mean: float
    deviation: float


def inception_score(logits: Tensor) -> InceptionScore:
    """exp E_x KL(p(y|x) ‖ p(y)) of logits [N, classes]; part i has pictures i, i + 10, ….

    Raises ValueError without pictures.
    """
    if len(logits) == 0:
        raise ValueError("logits: got none, expected one picture or more")
    splits = min(_SPLITS, len(logits))
    parts = torch.tensor([_score(logits[part::splits]) for part in range(splits)])
    deviation = float(parts.std(correction=0))
    return InceptionScore(_score(logits), float(parts.mean()), deviation)


def _score(logits: Tensor) -> float:
    log_p = logits.double().log_softmax(dim=1)  # [N, classes]
    log_mean = torch.logsumexp(log_p, dim=0) - torch.tensor(len(logits)).double().log()
    return float((log_p.exp() * (log_p - log_mean)).sum(dim=1).mean().exp())
