"""What each network of a cascade makes of its conditions: whole batches, on its device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.diffusion.degradations import enlarge
from trainer.diffusion.guidance import (
    Denoiser,
    clipped,
    denoiser,
    dynamically_thresholded,
    guided_denoiser,
)
from trainer.models.clip import TextEncoder, TextStates
from trainer.rng import SampleRandom

from .config import DecoderPart, PriorPart
from .parts import Part


def no_captions(text: TextEncoder, count: int) -> TextStates:
    """The empty caption, `count` times."""
    null = text(text.null_tokens[None])
    return TextStates(*(part.expand(count, *part.shape[1:]) for part in null))


@torch.inference_mode()
def sample_prior(part: Part, text: TextStates, null: TextStates, random: SampleRandom) -> Tensor:
    """z_i of captions, unit length, float32 [B, D]: of several samples the nearest to z_t.

    `null` is the empty caption, as often as there are captions.
    """
    settings = part.settings
    assert isinstance(settings, PriorPart)
    both = [torch.cat(pair) for pair in zip(text, null, strict=True)]

    def network(x: Tensor, t: Tensor) -> Tensor:
        states, mask, z_t, _ = (condition[: len(x)] for condition in both)
        out: Tensor = part.network(x, t, states, mask, z_t)
        return out

    if settings.guidance == 1:
        denoise = denoiser(part.diffusion, network)
    else:
        denoise = guided_denoiser(part.diffusion, network, settings.guidance)
    shape = (part.config.model.embedding_dim,)
    samples = torch.stack(
        [
            F.normalize(part.sample(denoise, shape, random, f"prior.{candidate}"), dim=-1)
            for candidate in range(settings.candidates)
        ]
    )  # [candidates, B, D]
    best = (samples * text.embedding).sum(dim=-1).argmax(dim=0)  # [B]
    return samples[best, torch.arange(len(best), device=best.device)]


@torch.inference_mode()
def decode(
    part: Part,
    image_embedding: Tensor,
    text: TextStates,
    null: TextStates,
    random: SampleRandom,
    keep_image: bool = True,
) -> Tensor:
    """The decoder's picture in [-1, 1], float32 [B, 3, S, S].

    image_embedding [B, D] of unit length; without `keep_image` it is dropped, as in training.
    `null` is the empty caption, as often as there are captions.
    """
    settings, objective = part.settings, part.config.objective
    assert isinstance(settings, DecoderPart)
    count = len(image_embedding)
    z_i = objective.embedding_scale * image_embedding
    both_z = torch.cat([z_i, z_i])
    kept = torch.arange(2 * count, device=z_i.device) < (count if keep_image else 0)
    caption = [torch.cat(pair) for pair in zip(text, null, strict=True)]

    def network(x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = part.network(x, t, both_z, kept, *caption)
        return out

    denoise = guided_denoiser(part.diffusion, network, settings.guidance)
    limited: Denoiser = (
        clipped(denoise) if settings.threshold == "static" else dynamically_thresholded(denoise)
    )
    side = objective.image_size
    return part.sample(limited, (3, side, side), random, "decoder")


@torch.inference_mode()
def upsample(part: Part, picture: Tensor, random: SampleRandom, purpose: str) -> Tensor:
    """One upsampler: [B, 3, S, S] → [B, 3, f · S, f · S], in [-1, 1]."""
    objective = part.config.objective
    enlarged = enlarge(picture, objective.factor, objective.antialias)

    def network(x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = part.network(x, t, enlarged)
        return out

    denoise = clipped(denoiser(part.diffusion, network))
    return part.sample(denoise, tuple(enlarged.shape[1:]), random, purpose)
