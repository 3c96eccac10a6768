"""The trained networks of a cascade, each with the diffusion it was trained for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from base.errors import UserError
from trainer.config import AnyTrainConfig, Precision
from trainer.diffusion.denoiser import Denoiser
from trainer.diffusion.process import Diffusion
from trainer.diffusion.samplers import analytic, ancestral, ddim, dpm_solver, heun
from trainer.diffusion.schedules import Spacing, spaced_timesteps
from trainer.engine.base import DTYPES
from trainer.models.ar_prior import ArPrior
from trainer.models.decoder import Decoder
from trainer.models.prior import DiffusionPrior
from trainer.models.upsampler import Upsampler
from trainer.rng import SampleRandom
from trainer.stages import load_weights

from .analytic import Scores, read_scores
from .ar_prior import ArPart
from .checkpoints import checkpoint_of
from .config import NetworkConfig, PartConfig, PriorPart, UpsamplerPart

_MODELS: dict[str, Any] = {
    "prior": DiffusionPrior,
    "ar_prior": ArPrior,
    "decoder": Decoder,
    "upsampler": Upsampler,
}
_NOISE_LIMIT = 2 / 255  # one level of a picture, which the eye does not see (Bao et al. 2022)


@dataclass(frozen=True)
class Part:
    """A trained network ready to be sampled."""

    settings: PartConfig
    config: AnyTrainConfig
    network: nn.Module
    diffusion: Diffusion
    scores: Scores | None = None  # for the sampler `analytic`
    last: nn.Module | None = None  # takes the last timestep in the place of `network`

    def timesteps(self) -> list[int]:
        """Those that a sampler goes through, noisiest first."""
        total = self.diffusion.steps
        spacing: Spacing = "trailing" if self.settings.sampler == "dpm++" else "even"
        return spaced_timesteps(total, min(self.settings.steps, total), spacing)

    def sample(
        self,
        denoise: Denoiser,
        shape: tuple[int, ...],
        random: SampleRandom,
        purpose: str,
        start: Tensor | None = None,
        eta: float | None = None,
    ) -> Tensor:
        """From noise of `shape` (without the batch) to a sample, float32 [B, *shape].

        `start` is the noise where it is not drawn; `eta` asks for DDIM whatever the settings say.
        """
        settings, diffusion, timesteps = self.settings, self.diffusion, self.timesteps()
        if start is None:
            start = random.normal(f"{purpose}.start", *shape)

        def step_noise(step: int) -> Tensor:
            return random.normal(f"{purpose}.step.{step}", *shape)

        if eta is not None:
            return ddim(denoise, diffusion, start, timesteps, eta, step_noise)
        match settings.sampler:
            case "ddim":
                return ddim(denoise, diffusion, start, timesteps, settings.eta, step_noise)
            case "ancestral":
                return ancestral(denoise, diffusion, start, timesteps, step_noise)
            case "dpm++":
                return dpm_solver(denoise, diffusion, start, timesteps)
            case "heun":
                return heun(denoise, diffusion, start, timesteps)
            case "analytic":
                assert self.scores is not None
                gamma = self.scores.at(timesteps, diffusion)
                limit = None if self.config.stage == "prior" else _NOISE_LIMIT
                return analytic(denoise, diffusion, start, timesteps, step_noise, gamma, limit)


def load_part(settings: PartConfig, stage: str, device: torch.device, precision: Precision) -> Part:
    """Load a run's averaged (or raw) weights for sampling.

    Raises:
        UserError: no such run or checkpoint, or a run of another stage; its scores were not
            measured, and the sampler needs them.
    """
    return _part(settings, *_load_network(settings, (stage,), device, precision))


def load_upsampler(settings: UpsamplerPart, device: torch.device, precision: Precision) -> Part:
    """Load an upsampler and the network of its last step, as `load_part` does.

    Raises:
        UserError: the two were not trained for the same pictures and diffusion.
    """
    part = load_part(settings, "upsampler", device, precision)
    if settings.last_step is None:
        return part
    config, last = _load_network(settings.last_step, ("upsampler",), device, precision)
    for name in ("diffusion", "factor", "antialias"):
        first, other = (getattr(each.objective, name) for each in (part.config, config))
        if first != other:
            raise UserError(
                f"upsamplers.last_step.run: {settings.last_step.run}: objective.{name}: got "
                f"{other}, expected {first} as in {settings.run}"
            )
    return replace(part, last=last)


def load_prior(settings: PriorPart, device: torch.device, precision: Precision) -> Part | ArPart:
    """Load a prior of either kind, as `load_part` does."""
    config, network = _load_network(settings, ("prior", "ar_prior"), device, precision)
    if isinstance(network, ArPrior):
        return ArPart(settings, network)
    return _part(settings, config, network)


def _part(settings: PartConfig, config: AnyTrainConfig, network: nn.Module) -> Part:
    scores = read_scores(settings, config.stage) if settings.sampler == "analytic" else None
    return Part(settings, config, network, Diffusion(config.objective.diffusion), scores)


def _load_network(
    settings: NetworkConfig, stages: Sequence[str], device: torch.device, precision: Precision
) -> tuple[AnyTrainConfig, nn.Module]:
    """A run of one of `stages`."""
    run, part = Path(settings.run), stages[0]
    samples = checkpoint_of(part, settings).manifest.samples
    config, weights = load_weights(run, settings.weights, samples)
    if config.stage not in stages:
        raise UserError(
            f"{part}.run: {run} is a run of stage {config.stage}, expected {' or '.join(stages)}"
        )
    with torch.device("meta"):
        network = _MODELS[config.stage](config.model)
    network = network.to_empty(device="cpu")
    missing = network.load_state_dict(weights, strict=False)
    if missing.missing_keys or missing.unexpected_keys:
        raise UserError(f"{part}.run: {run}: weights do not fit its config: {missing}")
    return config, ready(network, device, precision)


def ready(network: nn.Module, device: torch.device, precision: Precision) -> nn.Module:
    """The network as it is sampled: without gradients, and weights of convolutions with their
    channels last, which the pictures inside follow.

    Only group norms of 16 bits on a CPU are slower so (benchmarks/memory_format.py).
    """
    network = network.to(device=device, dtype=DTYPES[precision]).eval().requires_grad_(False)
    if device.type == "cpu" and precision != "fp32":
        return network
    return network.to(memory_format=torch.channels_last)
