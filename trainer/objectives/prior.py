"""The diffusion prior's objective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from trainer.batch import Batch, Needs
from trainer.diffusion.denoiser import Network
from trainer.diffusion.loss import LossConfig
from trainer.diffusion.process import Diffusion, DiffusionConfig
from trainer.models.clip import TextEncoder
from trainer.models.space import EmbeddingSpace, Length
from trainer.rng import SampleRandom

from .conditions import captions_for_a_prior
from .denoising import draw_timesteps, loss_at_random_times


@dataclass(frozen=True)
class PriorObjectiveConfig:
    """Paper section 2.2 and appendix C: predicts x_0, embeddings scaled (17.2 for the paper's
    CLIP; about √D brings each coordinate to unit variance), caption dropped in 10 %.

    `embedding_length`: `unit`, or `raw`: z_i and z_t at the length of CLIP's projections, as Karlo
    has them; the scale of those is 1, since the model's mean and deviation stand in for it.
    """

    diffusion: DiffusionConfig = field(default_factory=lambda: DiffusionConfig(predicts="x0"))
    loss: LossConfig = field(default_factory=LossConfig)
    embedding_scale: float = 17.2
    embedding_length: Length = "unit"
    drop_text: float = 0.1

    def __post_init__(self) -> None:
        if self.diffusion.learned_variance:
            raise ValueError(
                "diffusion.learned_variance: got true, expected false: a prior predicts x_0 alone"
            )


class PriorObjective:
    """The error of the predicted clean image embedding, in the space of the diffusion."""

    def __init__(self, config: PriorObjectiveConfig, text: TextEncoder) -> None:
        self.config = config
        self.diffusion = Diffusion(config.diffusion)
        self.text = text
        self.space = EmbeddingSpace(config.embedding_length)
        self.needs = Needs(
            tokens=True,
            embeddings=True,
            norms=config.embedding_length == "raw",
            context_length=text.context_length,
        )

    def begin(self, model: nn.Module, batches: Sequence[Batch]) -> None:
        """Nothing is shared between micro-batches."""

    def given(self, model: nn.Module, batch: Batch, random: SampleRandom) -> tuple[Tensor, Network]:
        """x_0 of the batch, and the model under the batch's conditions, some of them dropped."""
        assert batch.image_embedding is not None
        prior: Any = model  # a DiffusionPrior, or what stands for one
        drop = self.config.drop_text
        text = captions_for_a_prior(self.text, batch, random, drop, self.space)
        z_i = self.space.stored(batch.image_embedding, batch.image_norm)
        x0: Tensor = prior.standardised(self.config.embedding_scale * z_i)  # [B, D]

        def network(x_t: Tensor, t: Tensor) -> Tensor:
            output: Tensor = model(x_t, t, text.states, text.mask, text.embedding)
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
            self.diffusion, self.config.loss, network, x0, random, levels=False
        )

    def times(self, random: SampleRandom) -> Tensor:
        """[B]"""
        return draw_timesteps(random, self.diffusion) / self.diffusion.steps
