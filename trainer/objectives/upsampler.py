"""The upsamplers' objective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from trainer.batch import Batch, Needs
from trainer.diffusion.degradations import DegradationConfig, degrade, enlarge, shrink
from trainer.diffusion.process import Diffusion, DiffusionConfig, mean_squared_error
from trainer.rng import SampleRandom

from .conditions import draw_timesteps, to_signal


@dataclass(frozen=True)
class UpsamplerObjectiveConfig:
    """Paper section 2.1 and appendix C: trained on crops of a quarter of the side, conditioned on
    the picture at a quarter of the resolution, corrupted per sample. `antialias` enlarges it by the
    bicubic filter that Karlo has, not by torch's plain one."""

    image_size: int = 256
    crop: int | None = 64
    factor: int = 4
    antialias: bool = False
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    degradation: DegradationConfig = field(default_factory=DegradationConfig)


class UpsamplerObjective:
    """Mean squared error of the network's output on crops, given their corrupted small versions."""

    def __init__(self, config: UpsamplerObjectiveConfig) -> None:
        side = config.crop or config.image_size
        if side % config.factor:
            raise ValueError(f"objective.crop: got {side}, expected a multiple of {config.factor}")
        self.config = config
        self.diffusion = Diffusion(config.diffusion)
        self.needs = Needs(image_size=config.image_size, crop=config.crop)

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
        x0 = to_signal(batch.image)  # [B, 3, S, S]
        small = degrade(shrink(x0, self.config.factor), self.config.degradation, random)
        enlarged = enlarge(small, self.config.factor, self.config.antialias)  # [B, 3, S, S]
        t = draw_timesteps(random, self.diffusion)  # [B]
        noise = random.normal("noise", *x0.shape[1:])
        x_t = self.diffusion.add_noise(x0, t, noise)
        output = model(x_t, t, enlarged)
        return mean_squared_error(output, self.diffusion.target(x0, t, noise))

    def times(self, random: SampleRandom) -> Tensor:
        """[B]"""
        return draw_timesteps(random, self.diffusion) / self.diffusion.steps
