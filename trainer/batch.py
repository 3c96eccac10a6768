"""What the loader hands to an objective: a batch of samples, and which parts are wanted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Samples of one micro-batch; a part that the objective does not need is None."""

    positions: Tensor  # int64 [B], places in the global order; they key every random draw
    image: Tensor | None = None  # uint8 [B, 3, S, S]
    tokens: Tensor | None = None  # int64 [B, L]
    image_embedding: Tensor | None = None  # [B, D], unit length: float16, after `to` float32
    text_embedding: Tensor | None = None  # [B, D], unit length: float16, after `to` float32
    image_norm: Tensor | None = None  # float32 [B], before it was brought to unit length
    text_norm: Tensor | None = None  # float32 [B]

    def __len__(self) -> int:
        return len(self.positions)

    def to(self, device: torch.device) -> Batch:
        """Return the batch on `device`, ready for use; the copies do not wait for the device."""

        def copied(part: Tensor | None) -> Tensor | None:
            return None if part is None else part.to(device, non_blocking=True)

        image, text = copied(self.image_embedding), copied(self.text_embedding)
        return Batch(
            self.positions.to(device, non_blocking=True),
            copied(self.image),
            copied(self.tokens),
            None if image is None else image.float(),
            None if text is None else text.float(),
            copied(self.image_norm),
            copied(self.text_norm),
        )


@dataclass(frozen=True)
class Needs:
    """What an objective wants of the loader.

    `image_size`: pictures of this side (None: no tar is opened); `crop`: a square of this side
    cut out of them at a place drawn from (seed, position); `context_length`: tokens per caption;
    `norms`: the lengths that the embeddings had.
    """

    image_size: int | None = None
    crop: int | None = None
    tokens: bool = False
    embeddings: bool = False
    context_length: int = 77
    norms: bool = False

    @property
    def embeddings_alone(self) -> bool:
        """Whether samples are their two embeddings and nothing else."""
        return self.embeddings and self.image_size is None and not self.tokens and not self.norms
