"""The autoregressive prior's objective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from trainer.batch import Batch, Needs
from trainer.models.ar_prior import ArPrior
from trainer.models.clip import UNIT, TextEncoder
from trainer.rng import SampleRandom

from .conditions import captions_for_a_prior


@dataclass(frozen=True)
class ArPriorObjectiveConfig:
    """Paper section 2.2: caption and z_t dropped in 10 %. `fit_samples`: about so many samples of
    the data tell the principal components and the bounds of their buckets; None: all."""

    drop_text: float = 0.1
    fit_samples: int | None = 1 << 20


class ArPriorObjective:
    """Cross-entropy of an image embedding's tokens, in nats, the mean over its tokens.

    The similarity stays when its caption is dropped: without the caption it tells nothing of the
    picture, and so guidance can hold the one token in both its branches.
    """

    def __init__(self, config: ArPriorObjectiveConfig, text: TextEncoder) -> None:
        """
        Raises:
            ValueError: a share or a count out of range.
        """
        if not 0 <= config.drop_text <= 1:
            raise ValueError(f"drop_text: got {config.drop_text}, expected 0 to 1")
        if config.fit_samples is not None and config.fit_samples < 1:
            raise ValueError(f"fit_samples: got {config.fit_samples}, expected >= 1")
        self.config = config
        self.text = text
        self.needs = Needs(tokens=True, embeddings=True, context_length=text.context_length)

    def begin(self, model: nn.Module, batches: Sequence[Batch]) -> None:
        """Nothing is shared between micro-batches."""

    def loss(
        self,
        model: nn.Module,
        batch: Batch,
        random: SampleRandom,
        context: object | None,
        index: int,
    ) -> Tensor:
        """[B]"""
        assert isinstance(model, ArPrior)
        assert batch.image_embedding is not None
        assert batch.text_embedding is not None
        text = captions_for_a_prior(self.text, batch, random, self.config.drop_text, UNIT)
        tokens = model.codec.encode(batch.image_embedding)  # [B, K]
        similarity = (batch.image_embedding * batch.text_embedding).double().sum(dim=1)  # [B]
        dot = model.codec.encode_dot(similarity)  # [B]
        logits = model(text.states, text.mask, text.embedding, dot, tokens)  # [B, K, buckets]
        losses = F.cross_entropy(
            logits.float().flatten(0, 1), tokens.flatten(), reduction="none"
        )  # [B · K]
        return losses.view(tokens.shape).mean(dim=1)

    def times(self, random: SampleRandom) -> None:
        """There is no diffusion."""
