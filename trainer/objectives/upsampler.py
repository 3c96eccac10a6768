"""The upsamplers' objective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from trainer.batch import Batch, Needs
from trainer.diffusion.degradations import DegradationConfig, degrade, enlarge, shrink
from trainer.diffusion.denoiser import Network
from trainer.diffusion.loss import LossConfig
from trainer.diffusion.process import Diffusion, DiffusionConfig
from trainer.rng import SampleRandom

from .conditions import to_signal
from .denoising import draw_timesteps, loss_at_random_times


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
    loss: LossConfig = field(default_factory=LossConfig)
    degradation: DegradationConfig = field(default_factory=DegradationConfig)


class UpsamplerObjective:
    """Crops, given their corrupted small versions: error, and the bound of a learned variance."""

    def __init__(self, config: UpsamplerObjectiveConfig) -> None:
        side = config.crop or config.image_size
        if side % config.factor:
            raise ValueError(f"objective.crop: got {side}, expected a multiple of {config.factor}")
        self.config = config
        self.diffusion = Diffusion(config.diffusion)
        self.needs = Needs(image_size=config.image_size, crop=config.crop)

    def begin(self, model: nn.Module, batches: Sequence[Batch]) -> None:
        """Nothing is shared between micro-batches."""

    def given(self, model: nn.Module, batch: Batch, random: SampleRandom) -> tuple[Tensor, Network]:
        """x_0 of the batch, and the model under the batch's corrupted conditions."""
        assert batch.image is not None
        x0 = to_signal(batch.image)  # [B, 3, S, S]
        small = degrade(shrink(x0, self.config.factor), self.config.degradation, random)
        enlarged = enlarge(small, self.config.factor, self.config.antialias)  # [B, 3, S, S]

        def network(x_t: Tensor, t: Tensor) -> Tensor:
            output: Tensor = model(x_t, t, enlarged)
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
