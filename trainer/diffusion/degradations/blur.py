"""Blur by a Gaussian of each picture's own."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def gaussian_kernels(
    sigma: Tensor, reach: int, angle: Tensor | None = None, ratio: Tensor | None = None
) -> Tensor:
    """Gaussians of deviation sigma [B] in pixels. [B, K, K] with K = 2 · reach + 1, each sums to 1.

    `ratio` [B] (short axis / long axis) and `angle` [B] (radians, of the long axis from x towards
    y) make them anisotropic; `sigma` is the long axis's.
    """
    ratio = torch.ones_like(sigma) if ratio is None else ratio
    angle = torch.zeros_like(sigma) if angle is None else angle
    axis = torch.arange(-reach, reach + 1, device=sigma.device, dtype=torch.float32)
    dy, dx = torch.meshgrid(axis, axis, indexing="ij")  # [K, K]
    cos, sin = angle.cos().view(-1, 1, 1), angle.sin().view(-1, 1, 1)
    along, across = cos * dx + sin * dy, cos * dy - sin * dx  # [B, K, K]
    long = sigma.clamp(min=1e-3).view(-1, 1, 1)
    short = (long * ratio.view(-1, 1, 1)).clamp(min=1e-3)
    kernels = torch.exp(-0.5 * ((along / long) ** 2 + (across / short) ** 2))
    return kernels / kernels.sum(dim=(1, 2), keepdim=True)


def convolve(x: Tensor, kernels: Tensor) -> Tensor:
    """Picture b of x [B, C, H, W] by kernels[b] [K, K], K odd; edges are replicated."""
    b, c, h, w = x.shape
    reach = kernels.shape[-1] // 2
    padded = F.pad(x, [reach] * 4, mode="replicate").reshape(1, b * c, h + 2 * reach, w + 2 * reach)
    weights = kernels.repeat_interleave(c, dim=0)[:, None].to(x.dtype)  # [B · C, 1, K, K]
    return F.conv2d(padded, weights, groups=b * c).reshape(b, c, h, w)
