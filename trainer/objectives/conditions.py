"""Conditions as the objectives and the samplers present them to the networks."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.batch import Batch
from trainer.models.clip import TextEncoder, TextStates
from trainer.models.space import EmbeddingSpace
from trainer.rng import SampleRandom


def drop_captions(tokens: Tensor, keep: Tensor, null_tokens: Tensor) -> Tensor:
    """Tokens [B, L] with those of the empty caption [L] where `keep` (bool [B]) is False."""
    return torch.where(keep[:, None], tokens, null_tokens.to(tokens.device))


def captions_for_a_prior(
    text: TextEncoder,
    batch: Batch,
    random: SampleRandom,
    drop: float,
    space: EmbeddingSpace,
) -> TextStates:
    """A batch's captions, dropped in a share `drop`, and with them z_t.

    Where a caption is kept z_t is the stored one, where it is dropped the empty caption's, which
    `text` gives in the same space.
    """
    assert batch.tokens is not None
    assert batch.text_embedding is not None
    keep = random.uniform("drop_text") >= drop  # [B]
    states = text(drop_captions(batch.tokens, keep, text.null_tokens))
    stored = space.stored(batch.text_embedding, batch.text_norm)
    z_t = torch.where(keep[:, None], stored, states.embedding)  # [B, D]
    return states._replace(embedding=z_t)


def to_signal(image: Tensor) -> Tensor:
    """uint8 pixels → float32 in [-1, 1], the space in which pictures are diffused."""
    return image.float() / 127.5 - 1


def to_pixels(signal: Tensor) -> Tensor:
    """float in [-1, 1] → uint8 pixels, rounded, clipped."""
    return ((signal.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
