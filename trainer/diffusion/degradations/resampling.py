"""Other sizes: of a whole batch by one factor, and of each picture to its own size and back."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

AREA, BILINEAR, BICUBIC = range(3)


def shrink(x: Tensor, factor: int) -> Tensor:
    """Area average. [B, C, H, W] → [B, C, H / factor, W / factor]."""
    return F.avg_pool2d(x, factor)


def enlarge(x: Tensor, factor: int, antialias: bool = False) -> Tensor:
    """Bicubic. [B, C, h, w] → [B, C, h · factor, w · factor].

    With `antialias` torch takes the cubic with a = -0.5, as Pillow and Karlo do, otherwise -0.75.
    """
    scale = float(factor)
    return F.interpolate(
        x, scale_factor=scale, mode="bicubic", align_corners=False, antialias=antialias
    )


def there_and_back(side: int, scale: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """`side` pixels to `scale` [B] times as many (at most 1) and back, as matrices. [B, side, side]

    `down` and `up` [B] are the kernels: AREA, BILINEAR or BICUBIC.
    """
    whole = torch.full_like(scale, side)
    few = (scale * side).round().clamp(min=1)
    return resampling(up, few, whole, side) @ resampling(down, whole, few, side)


def resampling(kernel: Tensor, source: Tensor, target: Tensor, most: int) -> Tensor:
    """Matrices that make `target` [B] pixels of `source` [B], by `kernel` [B]. [B, most, most]

    Rows past the target's end and columns past the source's are zero. AREA weighs a pixel by what
    of it a new one covers (OpenCV's INTER_AREA); the others are Pillow's: a kernel that widens
    where pixels get fewer (a = -0.5 of the cubic), cut off at the edge, with a sum of 1.
    """
    step = (source / target).view(-1, 1, 1)  # pixels of the source for one of the target
    place = torch.arange(most, device=step.device, dtype=step.dtype)
    distance = (place + 0.5 - (place[:, None] + 0.5) * step).abs()  # [B, most, most]
    area = torch.minimum((step + 1) / 2 - distance, step.clamp(max=1)).clamp(min=0)
    distance = distance / step.clamp(min=1)
    kind = kernel.view(-1, 1, 1)
    weights = torch.where(kind == BILINEAR, (1 - distance).clamp(min=0), area)
    weights = torch.where(kind == BICUBIC, _cubic(distance), weights)
    weights = weights * (place < source.view(-1, 1, 1))
    weights = weights * (place[:, None] < target.view(-1, 1, 1))
    return weights / weights.sum(dim=2, keepdim=True).clamp(min=1e-6)


def _cubic(t: Tensor) -> Tensor:
    """Keys 1981 with a = -0.5, of distances t ≥ 0."""
    t = t.clamp(max=2)
    near = (1.5 * t - 2.5) * t * t + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    return torch.where(t < 1, near, far)
