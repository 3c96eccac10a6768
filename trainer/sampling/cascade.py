"""The cascade: caption → z_i (prior) → small picture (decoder) → larger ones (upsamplers)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.builders import load_text_encoder
from trainer.config import Precision
from trainer.diffusion.degradations import enlarge
from trainer.diffusion.guidance import (
    Denoiser,
    clipped,
    denoiser,
    dynamically_thresholded,
    guided_denoiser,
)
from trainer.engine.open import hardware_precision
from trainer.engine.processes import local_device
from trainer.models.clip import TextEncoder, TextStates
from trainer.objectives.conditions import to_pixels
from trainer.rng import SampleRandom

from .config import CascadeConfig, DecoderPart, PriorPart, load_cascade_config
from .parts import Part, load_part


@dataclass(frozen=True)
class Cascade:
    """A trained cascade. All methods take and give whole batches on `device`.

    Randomness comes from a `SampleRandom`: the picture of a (seed, position) is the same in any
    batch.
    """

    config: CascadeConfig
    device: torch.device
    text: TextEncoder
    prior: Part
    decoder: Part
    upsamplers: tuple[Part, ...]

    def captions(self, captions: Sequence[str]) -> TextStates:
        """Encode captions."""
        return self.text.encode(list(captions))

    def no_captions(self, count: int) -> TextStates:
        """The empty caption, `count` times."""
        null = self.text(self.text.null_tokens[None])
        return TextStates(*(part.expand(count, *part.shape[1:]) for part in null))

    @torch.inference_mode()
    def sample_prior(self, text: TextStates, random: SampleRandom) -> Tensor:
        """z_i of captions, unit length, float32 [B, D]: of several samples the nearest to z_t."""
        settings = self.prior.settings
        assert isinstance(settings, PriorPart)
        null = self.no_captions(len(text.embedding))
        both = [torch.cat(pair) for pair in zip(text, null, strict=True)]

        def network(x: Tensor, t: Tensor) -> Tensor:
            states, mask, z_t = (part[: len(x)] for part in both)
            out: Tensor = self.prior.network(x, t, states, mask, z_t)
            return out

        if settings.guidance == 1:
            denoise = denoiser(self.prior.diffusion, network)
        else:
            denoise = guided_denoiser(self.prior.diffusion, network, settings.guidance)
        shape = (self.prior.config.model.embedding_dim,)
        samples = torch.stack(
            [
                F.normalize(self.prior.sample(denoise, shape, random, f"prior.{candidate}"), dim=-1)
                for candidate in range(settings.candidates)
            ]
        )  # [candidates, B, D]
        best = (samples * text.embedding).sum(dim=-1).argmax(dim=0)  # [B]
        return samples[best, torch.arange(len(best), device=best.device)]

    @torch.inference_mode()
    def decode(
        self,
        image_embedding: Tensor,
        text: TextStates,
        random: SampleRandom,
        keep_image: bool = True,
    ) -> Tensor:
        """The decoder's picture in [-1, 1], float32 [B, 3, S, S].

        image_embedding [B, D] of unit length; without `keep_image` it is dropped, as in training.
        """
        settings, objective = self.decoder.settings, self.decoder.config.objective
        assert isinstance(settings, DecoderPart)
        count = len(image_embedding)
        null = self.no_captions(count)
        z_i = objective.embedding_scale * image_embedding
        both_z = torch.cat([z_i, z_i])
        kept = torch.arange(2 * count, device=self.device) < (count if keep_image else 0)
        states, mask = torch.cat([text.states, null.states]), torch.cat([text.mask, null.mask])

        def network(x: Tensor, t: Tensor) -> Tensor:
            out: Tensor = self.decoder.network(x, t, both_z, kept, states, mask)
            return out

        denoise = guided_denoiser(self.decoder.diffusion, network, settings.guidance)
        limited: Denoiser = (
            clipped(denoise) if settings.threshold == "static" else dynamically_thresholded(denoise)
        )
        side = objective.image_size
        return self.decoder.sample(limited, (3, side, side), random, "decoder")

    @torch.inference_mode()
    def upsample(self, picture: Tensor, random: SampleRandom) -> Tensor:
        """All upsamplers in order: [B, 3, S, S] → [B, 3, S', S'], in [-1, 1]."""
        for level, part in enumerate(self.upsamplers):
            picture = self.upsample_once(part, picture, random, f"upsampler.{level}")
        return picture

    @torch.inference_mode()
    def upsample_once(
        self, part: Part, picture: Tensor, random: SampleRandom, purpose: str
    ) -> Tensor:
        """One upsampler: [B, 3, S, S] → [B, 3, f · S, f · S]."""
        enlarged = enlarge(picture, part.config.objective.factor)

        def network(x: Tensor, t: Tensor) -> Tensor:
            out: Tensor = part.network(x, t, enlarged)
            return out

        denoise = clipped(denoiser(part.diffusion, network))
        return part.sample(denoise, tuple(enlarged.shape[1:]), random, purpose)

    def generate(self, captions: Sequence[str], seed: int, first: int = 0) -> Tensor:
        """One picture a caption, uint8 [B, 3, S', S'] on the CPU.

        `first` is the position of the first caption, so that a long list may come in batches.
        """
        random = self.random(seed, first, len(captions))
        text = self.captions(captions)
        picture = self.decode(self.sample_prior(text, random), text, random)
        return to_pixels(self.upsample(picture, random)).cpu()

    def random(self, seed: int, first: int, count: int) -> SampleRandom:
        """The draws of positions [first, first + count)."""
        return SampleRandom(seed, torch.arange(first, first + count, device=self.device))


def load_cascade(path: Path, precision: Precision | None = None) -> Cascade:
    """Load a cascade.yaml (or the folder that holds one) onto this process's device.

    Raises:
        UserError: missing, malformed, or naming runs that do not fit.
    """
    config = load_cascade_config(path)
    device = local_device()
    chosen = precision or hardware_precision(device)
    return Cascade(
        config=config,
        device=device,
        text=load_text_encoder(config.clip).to(device),
        prior=load_part(config.prior, "prior", device, chosen),
        decoder=load_part(config.decoder, "decoder", device, chosen),
        upsamplers=tuple(
            load_part(item, "upsampler", device, chosen) for item in config.upsamplers
        ),
    )
