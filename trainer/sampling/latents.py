"""Ways through the space of latents: between two of them, and along a change of caption."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from base.errors import UserError

_STRAIGHT = 1e-4  # radians: below it a chord is the arc


def slerp(start: Tensor, end: Tensor, share: float | Tensor) -> Tensor:
    """Spherical interpolation: `start` at share 0, `end` at share 1. [B, …]

    `share` is a number or [B]. The angle is that between the flattened rows, which need not be of
    unit length: so it serves z_i and x_T alike (paper section 3.2). Opposite rows have no shortest
    way between them.

    Raises:
        UserError: two rows are opposite.
    """
    shape = (-1, *[1] * (start.dim() - 1))
    share = torch.as_tensor(share, dtype=start.dtype, device=start.device)
    cosine = F.cosine_similarity(start.flatten(1).double(), end.flatten(1).double(), dim=1)  # [B]
    angle = torch.acos(cosine.clamp(-1, 1))
    if (torch.pi - angle < _STRAIGHT).any():
        raise UserError("start, end: got opposite directions, expected a way between them")
    near = angle < _STRAIGHT
    sine = torch.where(near, 1.0, torch.sin(angle))
    first = torch.where(near, 1 - share, torch.sin((1 - share) * angle) / sine)
    second = torch.where(near, share, torch.sin(share * angle) / sine)
    return first.to(start.dtype).view(shape) * start + second.to(start.dtype).view(shape) * end


def turned_along(z_i: Tensor, before: Tensor, after: Tensor, share: float | Tensor) -> Tensor:
    """z_i turned along the change from one caption to another (paper section 3.3). [B, D]

    slerp(z_i, (z_t - z_t0) / |z_t - z_t0|, share); the paper goes up to shares of 0.25 to 0.50.
    `before` and `after` are the captions' embeddings z_t0 and z_t, [B, D].

    Raises:
        UserError: the captions have the same embedding.
    """
    change = after - before
    if (change.norm(dim=-1) < _STRAIGHT).any():
        raise UserError("captions: got two that CLIP reads as the same, expected a change")
    return slerp(z_i, F.normalize(change, dim=-1), share)
