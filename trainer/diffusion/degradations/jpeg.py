"""JPEG's loss, as libjpeg's encoder and decoder cause it, of a batch at a quality each.

Numbers are float32 and rounded where libjpeg rounds. Up to the DCT they are whole and below 2²⁴,
so that they are the same on every device and in every batch.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

Rows = tuple[tuple[int, ...], ...]

_LUMA = (
    *(16, 11, 10, 16, 24, 40, 51, 61),
    *(12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56),
    *(14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77),
    *(24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101),
    *(72, 92, 95, 98, 112, 100, 103, 99),
)  # ITU-T T.81, table K.1
_CHROMA = (
    *(17, 18, 24, 47, 99, 99, 99, 99),
    *(18, 21, 26, 66, 99, 99, 99, 99),
    *(24, 26, 56, 99, 99, 99, 99, 99),
    *(47, 66, 99, 99, 99, 99, 99, 99),
    *(99, 99, 99, 99, 99, 99, 99, 99) * 4,
)  # table K.2

# JFIF's conversions in units of 1/65536, as libjpeg has them.
_UNIT = 65536.0
_TO_YCC = ((19595, 38470, 7471), (-11059, -21709, 32768), (32768, -27439, -5329))
_CHROMA_IN_RGB = ((0, 91881), (-22554, -46802), (116130, 0))  # of Cb and Cr


def jpeg(x: Tensor, quality: Tensor, halved: Tensor) -> Tensor:
    """Float pictures in [-1, 1], [B, 3, H, W], as they come out of JPEG files.

    `quality` [B] is whole, 1 … 100. Where `halved` [B] is true, chroma has half the resolution
    (4:2:0), elsewhere all of it (4:4:4). Sides may be of any length.
    """
    rgb = _nearest((x + 1) * 127.5).clamp(0, 255)
    ycc = _nearest(_mix(rgb, _TO_YCC))  # [B, 3, H, W], chroma about 0
    luma = ycc[:, :1] - 128
    tables = quantisation_tables(quality)  # [B, 2, 64]
    full = _coded(torch.cat([luma, ycc[:, 1:]], dim=1), tables[:, [0, 1, 1]])
    half = _from_half(_coded(_to_half(ycc[:, 1:]), tables[:, [1, 1]]), x)
    chroma = torch.where(halved.view(-1, 1, 1, 1), half, full[:, 1:])
    rgb = full[:, :1] + 128 + _nearest(_mix(chroma, _CHROMA_IN_RGB))
    return rgb.clamp(0, 255) / 127.5 - 1


def quantisation_tables(quality: Tensor) -> Tensor:
    """The standard's tables of luma and chroma, scaled as libjpeg does. [B] → [B, 2, 64]"""
    percent = torch.where(quality < 50, (5000 / quality).floor(), 200 - 2 * quality)
    standard = _constant((_LUMA, _CHROMA), quality.device)
    return ((standard * percent.view(-1, 1, 1) + 50) / 100).floor().clamp(1, 255)


def _nearest(values: Tensor) -> Tensor:
    """The nearest whole number; halves go up, as in libjpeg."""
    return (values + 0.5).floor()


@lru_cache(maxsize=32)
def _constant(rows: Rows, device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32, device=device)


def _mix(planes: Tensor, weights: Rows) -> Tensor:
    """[B, C, H, W] by weights [D, C] in units of 1/65536 → [B, D, H, W]"""
    b, _, h, w = planes.shape
    mixed = _constant(weights, planes.device) @ planes.flatten(2)
    return mixed.view(b, -1, h, w) / _UNIT


def _to_half(chroma: Tensor) -> Tensor:
    """Means of 2 × 2 pixels, [B, 2, H, W] → [B, 2, ⌈H / 2⌉, 8 · ⌈W / 16⌉].

    As in libjpeg the right edge is repeated before; the lower one will be, to whole blocks, after.
    """
    h, w = chroma.shape[2:]
    padded = F.pad(chroma, (0, -w % 16, 0, -h % 2), mode="replicate")
    return _nearest_in_turn(F.avg_pool2d(padded, 2), even=0.25, odd=0.5)


def _from_half(half: Tensor, like: Tensor) -> Tensor:
    """Chroma at the size of `like`: weights of 3/4 and 1/4, libjpeg's "fancy upsampling"."""
    h, w = like.shape[2:]
    doubled = F.interpolate(half[:, :, :, : -(-w // 2)], scale_factor=2.0, mode="bilinear")
    return _nearest_in_turn(doubled, even=8 / 16, odd=7 / 16)[:, :, :h, :w]


def _nearest_in_turn(values: Tensor, even: float, odd: float) -> Tensor:
    """Whole numbers; libjpeg lets halves go up in one column and down in the next."""
    column = torch.arange(values.shape[3], device=values.device)
    return (values + torch.where(column % 2 == 0, even, odd)).floor()


@lru_cache(maxsize=8)
def _basis(device: torch.device) -> Tensor:
    """The orthonormal DCT-II of blocks of 8 × 8: coefficients are basis @ pixels. [64, 64]"""
    k = torch.arange(8, dtype=torch.float64)
    line = torch.cos(torch.pi / 8 * (k + 0.5) * k[:, None]) / 2
    line[0] = 8**-0.5
    return torch.kron(line, line).float().to(device)


def _coded(planes: Tensor, tables: Tensor) -> Tensor:
    """Whole planes about 0, [B, C, H, W], after quantisation of their DCT by tables [B, C, 64]."""
    h, w = planes.shape[2:]
    padded = F.pad(planes, (0, -w % 8, 0, -h % 8), mode="replicate")
    blocks = padded.unfold(2, 8, 8).unfold(3, 8, 8)  # [B, C, H / 8, W / 8, 8, 8]
    basis = _basis(planes.device)
    eighths = (blocks.flatten(4) @ basis.T * 8).round() / 8  # libjpeg's has three binary places
    steps = tables[:, :, None, None]  # [B, C, 1, 1, 64]
    kept = (eighths.abs() / steps + 0.5).floor() * eighths.sign() * steps
    pixels = _nearest(kept @ basis).clamp(-128, 127).view(blocks.shape)
    return pixels.transpose(3, 4).reshape(padded.shape)[:, :, :h, :w]
