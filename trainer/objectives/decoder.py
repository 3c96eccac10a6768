"""The decoder's objective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from trainer.batch import Batch, Needs
from trainer.diffusion.denoiser import Network
from trainer.diffusion.loss import LossConfig
from trainer.diffusion.process import Diffusion, DiffusionConfig
from trainer.models.clip import TextEncoder
from trainer.models.space import EmbeddingSpace, Length
from trainer.rng import SampleRandom

from .conditions import drop_captions, to_signal
from .denoising import draw_timesteps, loss_at_random_times


@dataclass(frozen=True)
class DecoderObjectiveConfig:
    """Paper section 2.1 and appendix C: z_i dropped in 10 %, the caption in 50 %.

    `embedding_length`: as of the prior's objective; Karlo's decoder takes `raw` at scale 1.
    `condition: text_embedding` trains the decoder of section 5.1 that is given z_t in the place of
    z_i, and needs no prior; a cascade does not take it.
    """

    image_size: int = 64
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    embedding_scale: float = 17.2
    embedding_length: Length = "unit"
    condition: Literal["image_embedding", "text_embedding"] = "image_embedding"
    drop_image: float = 0.1
    drop_text: float = 0.5


class DecoderObjective:
    """Pictures, given z_i and caption: the network's error, and the bound of a learned variance."""

    def __init__(self, config: DecoderObjectiveConfig, text: TextEncoder) -> None:
        self.config = config
        self.diffusion = Diffusion(config.diffusion)
        self.text = text
        self.space = EmbeddingSpace(config.embedding_length)
        self.needs = Needs(
            image_size=config.image_size,
            tokens=True,
            embeddings=True,
            norms=config.embedding_length == "raw",
            context_length=text.context_length,
        )

    def begin(self, model: nn.Module, batches: Sequence[Batch]) -> None:
        """Nothing is shared between micro-batches."""

    def embedding(self, batch: Batch) -> Tensor:
        """What the decoder is given of a batch, z_i or z_t, in its space, unscaled. [B, D]"""
        if self.config.condition == "text_embedding":
            given, norms = batch.text_embedding, batch.text_norm
        else:
            given, norms = batch.image_embedding, batch.image_norm
        assert given is not None
        return self.space.stored(given, norms)

    def given(self, model: nn.Module, batch: Batch, random: SampleRandom) -> tuple[Tensor, Network]:
        """x_0 of the batch, and the model under the batch's conditions, some of them dropped."""
        assert batch.image is not None
        assert batch.tokens is not None
        keep_text = random.uniform("drop_text") >= self.config.drop_text  # [B]
        keep_image = random.uniform("drop_image") >= self.config.drop_image  # [B]
        text = self.text(drop_captions(batch.tokens, keep_text, self.text.null_tokens))
        z_i = self.config.embedding_scale * self.embedding(batch)  # [B, D]
        x0 = to_signal(batch.image)  # [B, 3, S, S]

        def network(x_t: Tensor, t: Tensor) -> Tensor:
            output: Tensor = model(x_t, t, z_i, keep_image, *text)
            return output

        return x0, network

    def loss(
        self,
        model: nn.Module,
        batch: Batch,
        random: SampleRandom,
        context: object | None,
        index: int,
    ) -> Tensor:
        """[B]"""
        x0, network = self.given(model, batch, random)
        return loss_at_random_times(
            self.diffusion, self.config.loss, network, x0, random, levels=True
        )

    def times(self, random: SampleRandom) -> Tensor:
        """[B]"""
        return draw_timesteps(random, self.diffusion) / self.diffusion.steps
