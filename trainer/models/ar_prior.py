"""The autoregressive prior: a causal transformer that tells an image embedding token by token.

Paper section 2.2: z_i is reduced to its principal components, ordered by eigenvalue, each of which
is quantised; a transformer with a causal mask predicts the codes. The caption and its embedding z_t
are a prefix, and so is a token of the quantised similarity z_i·z_t. Sizes are those of appendix C's
latent decoder: width 1664, 24 layers, 26 heads. Where the paper is silent this is the plain thing:
one table of tokens and one output layer for all places, which learned positions tell apart.

Other than in the paper the caption comes in as a frozen CLIP's token states, as in Karlo, and not
through a text transformer of the prior's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .codec import Codec
from .transformer import Block, KeysValues, causal_mask, initialise

_EXTRA_TOKENS = 2  # of the prefix after the caption: its embedding z_t, and the similarity


@dataclass(frozen=True)
class ArPriorConfig:
    """Sizes of the prior. `text_width` is the width of the text encoder's token states.

    `components` tokens tell an embedding, each one of `buckets`.
    """

    embedding_dim: int
    text_width: int
    context_length: int = 77
    components: int = 319
    buckets: int = 1024
    dot_buckets: int = 256
    layers: int = 24
    heads: int = 26
    head_width: int = 64
    dropout: float = 0.0


class State:
    """What the prior remembers while it tells embeddings [B]: each token goes through it once."""

    def __init__(self, blocks: int, size: int, keep: Tensor) -> None:
        self.blocks = [KeysValues(size) for _ in range(blocks)]
        self.keep = keep  # bool [B, N] of the tokens so far


class ArPrior(nn.Module):
    """Caption and similarity → the distribution of each token of an image embedding."""

    def __init__(self, config: ArPriorConfig) -> None:
        super().__init__()
        self.config = config
        width = config.heads * config.head_width
        self.prefix_length = config.context_length + _EXTRA_TOKENS
        self.codec = Codec(
            config.embedding_dim, config.components, config.buckets, config.dot_buckets
        )
        self.text_states_in = nn.Linear(config.text_width, width)
        self.text_embedding_in = nn.Linear(config.embedding_dim, width)
        self.dot_in = nn.Embedding(config.dot_buckets, width)
        self.tokens_in = nn.Embedding(config.buckets, width)
        # The last token is predicted and never read.
        length = self.prefix_length + config.components - 1
        self.positions = nn.Parameter(torch.zeros(1, length, width))
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.dropout) for _ in range(config.layers)
        )
        self.norm_out = nn.LayerNorm(width)
        self.logits_out = nn.Linear(width, config.buckets)
        self._initialise()

    def _initialise(self) -> None:
        initialise(self, self.config.layers)
        for table in (self.dot_in, self.tokens_in):
            nn.init.normal_(table.weight, std=0.02)
        # Which component is told weighs more than how the one before came out: with positions of
        # 0.01 a small prior learns more slowly, and with tokens of unit variance hardly at all.
        nn.init.normal_(self.positions, std=0.3)
        nn.init.zeros_(self.logits_out.weight)  # every token is as likely as another

    def compute_blocks(self) -> list[nn.Module]:
        """Where nearly all the work and the activations are, one by one."""
        return list(self.blocks)

    def forward(
        self,
        text_states: Tensor,
        text_mask: Tensor,
        text_embedding: Tensor,
        dot: Tensor,
        tokens: Tensor,
    ) -> Tensor:
        """Logits of all tokens, each from those before it, [B, K, buckets].

        text_states [B, L, W]; text_mask bool [B, L], True where a token is real; text_embedding
        [B, D] of unit length; dot int64 [B], of the codec; tokens int64 [B, K], of the codec.
        """
        prefix = self._prefix(text_states, text_embedding, dot)
        x = torch.cat([prefix, self.tokens_in(tokens[:, :-1])], dim=1) + self.positions
        keep = self._keep(text_mask, x.shape[1])
        x = self._through(x, causal_mask(keep), None)
        return self._logits(x[:, self.prefix_length - 1 :])

    def begin(
        self, text_states: Tensor, text_mask: Tensor, text_embedding: Tensor, dot: Tensor
    ) -> tuple[Tensor, State]:
        """Logits of the first token, [B, buckets], and what `extend` goes on with.

        Inputs as for `forward`; no gradient is taken.
        """
        prefix = self._prefix(text_states, text_embedding, dot)
        x = prefix + self.positions[:, : self.prefix_length]
        keep = self._keep(text_mask, self.prefix_length)
        state = State(len(self.blocks), self.positions.shape[1], keep)
        x = self._through(x, causal_mask(keep), state)
        return self._logits(x[:, -1]), state

    def extend(self, token: Tensor, state: State) -> Tensor:
        """Logits of the token after `token` (int64 [B]), [B, buckets]."""
        place = state.keep.shape[1]
        state.keep = F.pad(state.keep, (0, 1), value=True)
        x = self.tokens_in(token)[:, None] + self.positions[:, place : place + 1]
        x = self._through(x, state.keep[:, None, None], state)
        return self._logits(x[:, -1])

    def _prefix(self, text_states: Tensor, text_embedding: Tensor, dot: Tensor) -> Tensor:
        """[B, L + 2, width]"""
        dtype = self.text_states_in.weight.dtype
        z_t = self.config.embedding_dim**0.5 * text_embedding  # unit variance a coordinate
        parts = [
            self.text_states_in(text_states.to(dtype)),
            self.text_embedding_in(z_t.to(dtype))[:, None],
            self.dot_in(dot)[:, None],
        ]
        return torch.cat(parts, dim=1)

    def _keep(self, text_mask: Tensor, length: int) -> Tensor:
        """Which of the first `length` tokens are real; padding is the caption's alone."""
        return F.pad(text_mask, (0, length - text_mask.shape[1]), value=True)

    def _through(self, x: Tensor, mask: Tensor, state: State | None) -> Tensor:
        for index, block in enumerate(self.blocks):
            x = block(x, mask) if state is None else block(x, mask, state.blocks[index])
        return x

    def _logits(self, x: Tensor) -> Tensor:
        out: Tensor = self.logits_out(self.norm_out(x))
        return out
