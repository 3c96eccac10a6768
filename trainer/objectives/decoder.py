"""The decoder's objective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from trainer.batch import Batch, Needs
from trainer.diffusion.process import Diffusion, DiffusionConfig, mean_squared_error
from trainer.models.clip import TextEncoder
from trainer.rng import SampleRandom

from .conditions import draw_timesteps, drop_captions, to_signal


@dataclass(frozen=True)
class DecoderObjectiveConfig:
    """Paper section 2.1 and appendix C: z_i dropped in 10 %, the caption in 50 %."""

    image_size: int = 64
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    embedding_scale: float = 17.2
    drop_image: float = 0.1
    drop_text: float = 0.5


class DecoderObjective:
    """Mean squared error of the network's output on pictures with z_i and caption."""

    def __init__(self, config: DecoderObjectiveConfig, text: TextEncoder) -> None:
        self.config = config
        self.diffusion = Diffusion(config.diffusion)
        self.text = text
        self.needs = Needs(
            image_size=config.image_size,
            tokens=True,
            embeddings=True,
            context_length=text.context_length,
        )

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
        assert batch.image is not None
        assert batch.image_embedding is not None
        assert batch.tokens is not None
        keep_text = random.uniform("drop_text") >= self.config.drop_text  # [B]
        keep_image = random.uniform("drop_image") >= self.config.drop_image  # [B]
        text = self.text(drop_captions(batch.tokens, keep_text, self.text.null_tokens))
        z_i = self.config.embedding_scale * batch.image_embedding  # [B, D]
        x0 = to_signal(batch.image)  # [B, 3, S, S]
        t = draw_timesteps(random, self.diffusion)  # [B]
        noise = random.normal("noise", *x0.shape[1:])
        x_t = self.diffusion.add_noise(x0, t, noise)
        output = model(x_t, t, z_i, keep_image, *text)
        return mean_squared_error(output, self.diffusion.target(x0, t, noise))

    def times(self, random: SampleRandom) -> Tensor:
        """[B]"""
        return draw_timesteps(random, self.diffusion) / self.diffusion.steps
