"""A decoder's own reader of captions, trained with it (GLIDE, Nichol et al. 2022, section 4.1).

All states of the last layer are what the U-Net attends to, and the state at the last place is
added to the timestep embedding. Every token sees every other; a learned vector for each place
stands where a caption has ended, so that there is always a last one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .transformer import Block, initialise


@dataclass(frozen=True)
class TextTransformerConfig:
    """Sizes; the defaults are those of paper appendix C. Tokens are those of open_clip's tokenizer,
    whose end of a caption has the highest number."""

    context_length: int = 256
    width: int = 2048
    layers: int = 24
    heads: int = 32
    vocab_size: int = 49408

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(
                f"heads: got {self.heads}, expected a divisor of the width {self.width}"
            )


class TextTransformer(nn.Module):
    """Tokens of captions → states of all places, and the one at the last."""

    def __init__(self, config: TextTransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Parameter(torch.zeros(config.context_length, config.width))
        self.padding = nn.Parameter(torch.zeros(config.context_length, config.width))
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, dropout=0.0) for _ in range(config.layers)
        )
        self.norm_out = nn.LayerNorm(config.width)
        self._initialise()

    def _initialise(self) -> None:
        initialise(self, self.config.layers)
        for table in (self.token_embedding.weight, self.positions, self.padding):
            nn.init.normal_(table, std=0.02)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """tokens int64 [B, L], L at most the context's length, the same for all captions.

        Returns states [B, L, W] and the last of them [B, W].

        Raises:
            ValueError: more tokens than the context has places.
        """
        length, places = tokens.shape[1], self.config.context_length
        if length > places:
            raise ValueError(f"context_length: got {length} tokens, expected at most {places}")
        ends = tokens.argmax(dim=1)  # [B]
        real = torch.arange(length, device=tokens.device) <= ends[:, None]  # [B, L]
        x = torch.where(
            real[:, :, None],
            self.token_embedding(tokens) + self.positions[:length],
            self.padding[:length],
        )  # [B, L, W]
        everything = real.new_ones(1, 1, 1, length)
        for block in self.blocks:
            x = block(x, everything)
        states = self.norm_out(x)
        return states, states[:, -1]
