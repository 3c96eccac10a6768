"""Gaussian noise: the same in all channels, independent, or in between."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

GREY, COLOUR, CORRELATED = range(3)


def channel_mixing(kind: Tensor, directions: Tensor) -> Tensor:
    """What turns independent noise of three channels into noise of `kind` [B]. [B, 3, 3]

    A row is a channel's, of length 1, so that every channel keeps the deviation, and the product
    of two rows is their correlation: 1 if GREY, 0 if COLOUR. Of CORRELATED noise the rows point
    along `directions` [B, 3, 3]; where none of those is negative, correlations are 0 … 1.
    """
    kind = kind.view(-1, 1, 1)
    colour = torch.eye(3, device=kind.device)
    grey = colour[:1].expand(3, 3)
    mixing = torch.where(kind == GREY, grey, colour)
    return torch.where(kind == CORRELATED, F.normalize(directions, dim=2), mixing)


def mix_channels(noise: Tensor, mixing: Tensor) -> Tensor:
    """[B, 3, H, W] by [B, 3, 3] → [B, 3, H, W]"""
    return (mixing @ noise.flatten(2)).view_as(noise)
