"""Conditions as the objectives and the samplers present them to the networks."""

from __future__ import annotations

import torch
from torch import Tensor


def drop_captions(tokens: Tensor, keep: Tensor, null_tokens: Tensor) -> Tensor:
    """Tokens [B, L] with those of the empty caption [L] where `keep` (bool [B]) is False."""
    return torch.where(keep[:, None], tokens, null_tokens.to(tokens.device))


def to_signal(image: Tensor) -> Tensor:
    """uint8 pixels → float32 in [-1, 1], the space in which pictures are diffused."""
    return image.float() / 127.5 - 1


def to_pixels(signal: Tensor) -> Tensor:
    """float in [-1, 1] → uint8 pixels, rounded, clipped."""
    return ((signal.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
