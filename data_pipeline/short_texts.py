"""Captions through a CLIP's text tower without the padding behind the longest of a batch.

Most captions have some fifteen of 77 tokens. Where attention is causal and the end token's row is
what is taken, nothing behind it can change the result; what is left is open_clip's own forward.
"""

from __future__ import annotations

from typing import Any

import open_clip
import torch
from torch.func import functional_call

_STEP = 8  # lengths are multiples of it: kernels are chosen, and made ready, by the shape


class TextTower(torch.nn.Module):
    """A CLIP's `encode_text` as a module: raw features of tokens int64 [B, L], [B, D]."""

    def __init__(self, clip: torch.nn.Module) -> None:
        super().__init__()
        self.clip = clip
        self._is_causal = (
            isinstance(clip, open_clip.CLIP)
            and clip.attn_mask is not None
            and clip.text_pool_type == "argmax"
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """What open_clip gives for tokens of any length that the parameters have."""
        features: torch.Tensor = self.clip.encode_text(tokens)  # type: ignore[operator]
        return features

    def short(self, tokens: torch.Tensor, device: torch.device) -> torch.Tensor:
        """The same up to rounding, for tokens on the CPU, where their lengths cost no wait."""
        whole = tokens.shape[1]
        longest = int(tokens.argmax(dim=1).max()) + 1  # the end token has the highest id
        length = min(-(-longest // _STEP) * _STEP, whole)
        if not self._is_causal or length == whole:
            return self.forward(tokens.to(device))
        clip: Any = self.clip
        shorter = {
            "clip.positional_embedding": clip.positional_embedding[:length],
            "clip.attn_mask": clip.attn_mask[:length, :length],
        }
        features: torch.Tensor = functional_call(self, shorter, (tokens[:, :length].to(device),))
        return features
