"""Corruptions of an upsampler's conditioning: Gaussian blur, and the BSR chain.

BSR (Zhang et al. 2021, "Designing a practical degradation model for deep blind image
super-resolution") applies blur, resizing, noise and JPEG in an order shuffled per picture. Every
strength here is drawn per sample, never per batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class Draws(Protocol):
    """The part of trainer.rng.SampleRandom that corruption uses."""

    def uniform(self, purpose: str, *shape: int) -> Tensor: ...
    def normal(self, purpose: str, *shape: int) -> Tensor: ...


@dataclass(frozen=True)
class DegradationConfig:
    """What corrupts the conditioning, and how much at most.

    `blur_sigma` is a range in pixels of the small picture, `blur_kernel` the side of what blurs
    (paper, 64→256: 0.6 with kernel 3; `bsr` takes what its widest Gaussian needs); `noise` a
    standard deviation in [-1, 1] pixel units; `jpeg_quality` the lowest quality; `shrink` the
    smallest scale of the resize. Only `bsr` uses the last three.
    """

    kind: Literal["none", "blur", "bsr"] = "blur"
    blur_sigma: tuple[float, float] = (0.0, 0.6)
    blur_kernel: Literal[3, 5, 7] = 3
    noise: float = 0.05
    jpeg_quality: int = 40
    shrink: float = 0.5


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


def degrade(x: Tensor, config: DegradationConfig, random: Draws) -> Tensor:
    """Corrupt float pictures in [-1, 1], [B, C, H, W], each by its own draws."""
    match config.kind:
        case "none":
            return x
        case "blur":
            low, high = config.blur_sigma
            sigma = low + (high - low) * random.uniform("blur_sigma")  # [B]
            return gaussian_blur(x, sigma, config.blur_kernel // 2)
        case "bsr":  # its order depends on values, which a meta tensor has not
            return x if x.is_meta else bsr(x, config, random)


def _reach(largest_sigma: float) -> int:
    """Half the kernel's side: of the configuration, since of the batch it would tie samples."""
    return max(1, math.ceil(3 * largest_sigma))


def gaussian_blur(
    x: Tensor,
    sigma: Tensor,
    reach: int,
    angle: Tensor | None = None,
    ratio: Tensor | None = None,
) -> Tensor:
    """Blur picture b with a Gaussian of deviation sigma[b] pixels; edges are replicated.

    The kernel has 2 · reach + 1 pixels a side. `ratio` [B] (short axis / long axis) and `angle`
    [B] (radians) make it anisotropic.
    """
    b, c, h, w = x.shape
    ratio = torch.ones_like(sigma) if ratio is None else ratio
    angle = torch.zeros_like(sigma) if angle is None else angle
    axis = torch.arange(-reach, reach + 1, device=x.device, dtype=torch.float32)
    dy, dx = torch.meshgrid(axis, axis, indexing="ij")  # [K, K]
    cos, sin = angle.cos().view(-1, 1, 1), angle.sin().view(-1, 1, 1)
    along, across = cos * dx + sin * dy, cos * dy - sin * dx  # [B, K, K]
    long = sigma.clamp(min=1e-3).view(-1, 1, 1)
    short = long * ratio.view(-1, 1, 1)
    kernel = torch.exp(-0.5 * ((along / long) ** 2 + (across / short.clamp(min=1e-3)) ** 2))
    kernel = (kernel / kernel.sum(dim=(1, 2), keepdim=True)).repeat_interleave(c, dim=0)[:, None]
    padded = F.pad(x, [reach] * 4, mode="replicate").reshape(1, b * c, h + 2 * reach, w + 2 * reach)
    return F.conv2d(padded, kernel.to(x.dtype), groups=b * c).reshape(b, c, h, w)


def bsr(x: Tensor, config: DegradationConfig, random: Draws) -> Tensor:
    """The BSR chain: blur, resize, noise and JPEG, in an order shuffled per picture."""
    order = random.uniform("bsr_order", 4).argsort(dim=1)  # [B, 4]
    low, high = config.blur_sigma
    sigma = low + (high - low) * random.uniform("blur_sigma")
    angle = torch.pi * random.uniform("blur_angle")
    ratio = 0.5 + 0.5 * random.uniform("blur_ratio")
    scale = config.shrink + (1 - config.shrink) * random.uniform("shrink")
    deviation = config.noise * random.uniform("noise_deviation").view(-1, 1, 1, 1)
    grain = deviation * random.normal("grain", *x.shape[1:])
    quality = config.jpeg_quality + (100 - config.jpeg_quality) * random.uniform("jpeg_quality")
    for slot in range(4):
        turn = order[:, slot]
        for step in range(4):
            rows = (turn == step).nonzero()[:, 0]
            if len(rows) == 0:
                continue
            part = x[rows]
            match step:
                case 0:
                    part = gaussian_blur(part, sigma[rows], _reach(high), angle[rows], ratio[rows])
                case 1:
                    part = _shrink_and_back(part, scale[rows])
                case 2:
                    part = part + grain[rows]
                case 3:
                    part = jpeg(part, quality[rows])
            x = x.index_copy(0, rows, part)
    return x.clamp(-1, 1)


def _shrink_and_back(x: Tensor, scale: Tensor) -> Tensor:
    """Each picture to its own smaller size and back, bilinearly, in one resampling."""
    h, w = x.shape[2:]
    side = max(h, w)
    target = (scale * side).round().clamp(min=1)  # [B], the smaller side in pixels
    out = x.clone()
    for size in sorted(set(target.tolist())):
        rows = (target == size).nonzero()[:, 0]
        small_size = (max(1, round(h * size / side)), max(1, round(w * size / side)))
        small = F.interpolate(x[rows], size=small_size, mode="bilinear", antialias=True)
        out[rows] = F.interpolate(small, size=(h, w), mode="bilinear")
    return out


_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)  # ITU-T T.81, table K.1


@lru_cache(maxsize=1)
def _dct_matrix() -> Tensor:
    """The orthonormal 8-point DCT-II. [8, 8]"""
    k = torch.arange(8, dtype=torch.float32)
    matrix = torch.cos(torch.pi / 8 * (k[None, :] + 0.5) * k[:, None]) * 0.5
    matrix[0] *= 0.5**0.5
    return matrix


def jpeg(x: Tensor, quality: Tensor) -> Tensor:
    """JPEG's loss on float pictures in [-1, 1], [B, 3, H, W], each at its own quality (1 … 100).

    Blocks of 8 × 8 in YCbCr are quantised with the standard's luminance table (chroma is not
    subsampled); sides that are no multiple of 8 are padded for the purpose.
    """
    b, _, h, w = x.shape
    padded = F.pad(x, (0, -w % 8, 0, -h % 8), mode="replicate")
    weights = torch.tensor(
        [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]],
        device=x.device,
        dtype=x.dtype,
    )
    ycc = torch.einsum("ij,bjhw->bihw", weights, padded * 127.5)  # centred, as JPEG codes it
    blocks = ycc.unfold(2, 8, 8).unfold(3, 8, 8)  # [B, 3, H/8, W/8, 8, 8]
    dct = _dct_matrix().to(x)
    coefficients = dct @ blocks @ dct.T
    quality = quality.clamp(1, 100)
    percent = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)  # libjpeg's scaling
    table = torch.tensor(_LUMA, device=x.device, dtype=x.dtype) * percent.view(-1, 1, 1) / 100
    table = table.clamp(1, 255).view(b, 1, 1, 1, 8, 8)
    blocks = dct.T @ ((coefficients / table).round() * table) @ dct
    ycc = blocks.permute(0, 1, 2, 4, 3, 5).reshape(padded.shape)
    rgb = torch.einsum("ij,bjhw->bihw", torch.linalg.inv(weights), ycc)
    return (rgb / 127.5)[:, :, :h, :w]
