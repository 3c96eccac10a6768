"""What the objectives of diffused pictures and embeddings share: noise in, losses out."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from trainer.batch import Batch
from trainer.diffusion.denoiser import Network
from trainer.diffusion.loss import LossConfig, denoising_loss
from trainer.diffusion.process import Diffusion
from trainer.rng import SampleRandom

from .base import Objective


@runtime_checkable
class Denoising(Objective, Protocol):
    """An objective that says what is diffused, and under which conditions."""

    diffusion: Diffusion

    def given(self, model: nn.Module, batch: Batch, random: SampleRandom) -> tuple[Tensor, Network]:
        """x_0 of the batch, and the model under the batch's conditions."""
        ...


def draw_timesteps(random: SampleRandom, diffusion: Diffusion) -> Tensor:
    """Each sample's timestep, int64 [B] in 0 … T-1."""
    return random.integers("timestep", diffusion.steps)


def loss_at_random_times(
    diffusion: Diffusion,
    config: LossConfig,
    network: Network,
    x0: Tensor,
    random: SampleRandom,
    levels: bool,
) -> Tensor:
    """The loss of each sample at a timestep and with noise of its own, fp32 [B].

    `network` holds the conditions of x_0 [B, …]; `levels`: x_0 are pictures of 256 levels.
    """
    t = draw_timesteps(random, diffusion)  # [B]
    noise = random.normal("noise", *x0.shape[1:])
    output = network(diffusion.add_noise(x0, t, noise), t)
    return denoising_loss(diffusion, config, output, x0, t, noise, levels)
