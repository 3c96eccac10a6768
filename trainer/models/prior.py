"""The diffusion prior: a causal transformer from a caption to CLIP's image embedding.

Paper section 2.2: the sequence is [encoded text tokens, CLIP text embedding, timestep embedding,
noised CLIP image embedding, a final learned token]; the output at the final token predicts the
clean image embedding z_i. Sizes follow Karlo's prior, whose parameter count this one has exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .embeddings import TimestepMLP
from .transformer import Block, causal_mask, initialise

_EXTRA_TOKENS = 4  # text embedding, timestep, noised image embedding, final learned token


@dataclass(frozen=True)
class PriorConfig:
    """Sizes of the prior. `text_width` is the width of the text encoder's token states."""

    embedding_dim: int
    text_width: int
    context_length: int = 77
    layers: int = 20
    heads: int = 32
    head_width: int = 64
    dropout: float = 0.0


class DiffusionPrior(nn.Module):
    """x_t, t, caption → estimate of the clean image embedding.

    Embeddings go in and out in the space in which the diffusion runs: scaled (paper: 17.2 · z_i),
    less the mean and over the deviation that a checkpoint may carry (Karlo's does).
    """

    clip_mean: Tensor  # [1, D]
    clip_std: Tensor  # [1, D]

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        width = config.heads * config.head_width
        tokens = config.context_length + _EXTRA_TOKENS
        self.text_states_in = nn.Linear(config.text_width, width)
        self.text_embedding_in = nn.Linear(config.embedding_dim, width)
        self.time = TimestepMLP(width, width)
        self.image_in = nn.Linear(config.embedding_dim, width)
        self.final_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, tokens, width))
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.dropout) for _ in range(config.layers)
        )
        self.norm_out = nn.LayerNorm(width)
        self.image_out = nn.Linear(width, config.embedding_dim)
        # 0 and 1 unless a checkpoint was imported that carries others.
        self.register_buffer("clip_mean", torch.zeros(1, config.embedding_dim))
        self.register_buffer("clip_std", torch.ones(1, config.embedding_dim))
        self._initialise()

    def _initialise(self) -> None:
        initialise(self, self.config.layers)
        nn.init.normal_(self.positions, std=0.01)
        nn.init.normal_(self.final_token, std=0.01)

    def standardised(self, embedding: Tensor) -> Tensor:
        """Embeddings in the space of the diffusion, float32 [B, D]: their mean 0, deviation 1."""
        return (embedding.float() - self.clip_mean) / self.clip_std

    def restored(self, x: Tensor) -> Tensor:
        """The way back, float32 [B, D]."""
        return x.float() * self.clip_std + self.clip_mean

    def _apply(self, fn: Callable[..., Tensor], recurse: bool = True) -> DiffusionPrior:
        """Mean and deviation stay float32, whatever precision the weights are brought to."""
        before = {name: getattr(self, name) for name in ("clip_mean", "clip_std")}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, exact in before.items():
            now = getattr(self, name)
            if now.dtype != exact.dtype:
                setattr(self, name, exact.to(now.device))
        return self

    def compute_blocks(self) -> list[nn.Module]:
        """Where nearly all the work and the activations are, one by one."""
        return list(self.blocks)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        text_states: Tensor,
        text_mask: Tensor,
        text_embedding: Tensor,
    ) -> Tensor:
        """Predict the clean embedding.

        x_t [B, D]; t int64 [B]; text_states [B, L, W]; text_mask bool [B, L], True where a token
        is real; text_embedding [B, D]. Returns [B, D].
        """
        b = x_t.shape[0]
        dtype = self.image_in.weight.dtype
        sequence = torch.cat(
            [
                self.text_states_in(text_states.to(dtype)),
                self.text_embedding_in(text_embedding.to(dtype))[:, None],
                self.time(t)[:, None],
                self.image_in(x_t.to(dtype))[:, None],
                self.final_token.expand(b, -1, -1),
            ],
            dim=1,
        )  # [B, L + 4, width]
        keep = F.pad(text_mask, (0, _EXTRA_TOKENS), value=True)  # [B, L + 4]
        mask = causal_mask(keep)  # [B, 1, L + 4, L + 4]
        x = sequence + self.positions
        for block in self.blocks:
            x = block(x, mask)
        out: Tensor = self.image_out(self.norm_out(x[:, -1]))
        return out
