"""The diffusion prior: a causal transformer from a caption to CLIP's image embedding.

Paper section 2.2: the sequence is [encoded text tokens, CLIP text embedding, timestep embedding,
noised CLIP image embedding, a final learned token]; the output at the final token predicts the
clean image embedding z_i. Sizes follow Karlo's prior, whose parameter count this one has exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .embeddings import TimestepMLP
from .transformer import Block, KeysValues, causal_mask, initialise

_EXTRA_TOKENS = 4  # text embedding, timestep, noised image embedding, final learned token
_STEP = 8


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


class Remembered(NamedTuple):
    """Captions [B] as every block sees them, before a timestep and an embedding follow."""

    keep: Tensor  # bool [B, L + 4]: which tokens are real, those that follow among them
    blocks: list[KeysValues]


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
        text_states, text_mask = without_padding(text_states, text_mask)
        caption = self._caption(text_states, text_embedding)
        x = torch.cat([caption, self._noised(x_t, t)], dim=1)  # [B, L + 4, width]
        mask = causal_mask(F.pad(text_mask, (0, _EXTRA_TOKENS), value=True))
        return self._answer(x, mask, [None] * len(self.blocks))

    def remember(
        self, text_states: Tensor, text_mask: Tensor, text_embedding: Tensor
    ) -> Remembered:
        """What captions are to the network at any x_t and t: `answer` goes on with it.

        Attention is causal, and the caption comes first. Inputs as for `forward`; no gradient is
        taken. Padding stays: how long the other captions of a batch are would be seen in the last
        digits of a sample.
        """
        keep = F.pad(text_mask, (0, _EXTRA_TOKENS), value=True)  # [B, L + 4]
        blocks = [KeysValues(keep.shape[1]) for _ in self.blocks]
        x = self._caption(text_states, text_embedding)
        mask = causal_mask(keep[:, : x.shape[1]])
        for block, earlier in zip(self.blocks, blocks, strict=True):
            x = block(x, mask, earlier)
        return Remembered(keep, blocks)

    def answer(self, x_t: Tensor, t: Tensor, caption: Remembered) -> Tensor:
        """`forward` under captions that are remembered, or the first of them. Returns [B, D]."""
        x = self._noised(x_t, t)
        before = caption.keep.shape[1] - x.shape[1]
        mask = causal_mask(caption.keep[: len(x)])[:, :, before:]
        for earlier in caption.blocks:
            earlier.forget(before)
        return self._answer(x, mask, caption.blocks)

    def _caption(self, text_states: Tensor, text_embedding: Tensor) -> Tensor:
        """The tokens that every x_t and t has before it, [B, L + 1, width]."""
        dtype, length = self.image_in.weight.dtype, text_states.shape[1]
        states = self.text_states_in(text_states.to(dtype)) + self.positions[:, :length]
        z_t = self.text_embedding_in(text_embedding.to(dtype))[:, None]
        place = self.config.context_length
        return torch.cat([states, z_t + self.positions[:, place : place + 1]], dim=1)

    def _noised(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The last tokens: timestep, noised embedding, the one that answers, [B, 3, width]."""
        image = self.image_in(x_t.to(self.image_in.weight.dtype))
        final = self.final_token[0].expand_as(image)
        tokens = torch.stack([self.time(t), image, final], dim=1)
        return tokens + self.positions[:, self.config.context_length + 1 :]

    def _answer(self, x: Tensor, mask: Tensor, earlier: Sequence[KeysValues | None]) -> Tensor:
        """Through the blocks, of which the last has one token to work out."""
        *blocks, last = zip(self.blocks, earlier, strict=True)
        for block, before in blocks:
            x = block(x, mask, before)
        block, before = last
        x = block(x, mask[:, :, -1:], before, 1)
        out: Tensor = self.image_out(self.norm_out(x[:, -1]))
        return out


def without_padding(states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [B, L, W] and their mask [B, L] up to the last that is real, on a CPU.

    No other token sees the rest. (A GPU would have to be waited for to know the length, which is a
    multiple of eight: what is compiled, is so for a shape.)
    """
    if mask.device.type != "cpu":
        return states, mask
    longest = int((mask * torch.arange(1, mask.shape[1] + 1)).max())
    length = -(-max(longest, 1) // _STEP) * _STEP
    return states[:, :length], mask[:, :length]
