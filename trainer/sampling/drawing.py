"""What each network of a cascade makes of its conditions: whole batches, on its device."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from trainer.diffusion.degradations import enlarge
from trainer.diffusion.denoiser import Denoiser, Network, denoiser
from trainer.diffusion.guidance import guided_denoiser
from trainer.diffusion.samplers import ddim_inversion
from trainer.diffusion.thresholds import clipped, dynamically_thresholded
from trainer.models.clip import UNIT, TextEncoder, TextStates
from trainer.models.decoder import Decoder
from trainer.models.prior import DiffusionPrior
from trainer.models.space import EmbeddingSpace
from trainer.rng import SampleRandom

from .ar_prior import ArPart
from .config import DecoderPart, GuidedPart, PriorPart
from .parts import Part

_REFINEMENTS = 2  # of a step of DDIM inversion: a picture comes back in few steps


def no_captions(text: TextEncoder, count: int) -> TextStates:
    """The empty caption, `count` times."""
    null = text(text.null_tokens[None])
    return TextStates(*(part.expand(count, *part.shape[1:]) for part in null))


@torch.inference_mode()
def sample_prior(
    part: Part | ArPart, text: TextStates, null: TextStates, random: SampleRandom
) -> Tensor:
    """z_i of captions, float32 [B, D], in the captions' space: of several the nearest to z_t.

    `null` is the empty caption, as often as there are captions.
    """
    settings = part.settings
    assert isinstance(settings, PriorPart)
    names = [f"prior.{candidate}" for candidate in range(settings.candidates)]
    if isinstance(part, ArPart):
        drawn = [part.sample(text, null, random, name) for name in names]
        return _nearest(torch.stack(drawn), text.embedding, UNIT)
    prior = cast(DiffusionPrior, part.network)
    told = _branches(settings, text, null)
    captions = prior.remember(told.states, told.mask, told.embedding)
    denoise = _guided(part, settings, lambda x, t: prior.answer(x, t, captions))
    if settings.limit is not None:
        denoise = clipped(denoise, settings.limit)
    shape, objective = (part.config.model.embedding_dim,), part.config.objective
    space = EmbeddingSpace(objective.embedding_length)
    restored = [prior.restored(part.sample(denoise, shape, random, name)) for name in names]
    samples = torch.stack([space.unscaled(z, objective.embedding_scale) for z in restored])
    return _nearest(samples, text.embedding, space)


def _nearest(samples: Tensor, z_t: Tensor, space: EmbeddingSpace) -> Tensor:
    """Of samples [candidates, B, D] those nearest to z_t [B, D]."""
    cosines = (space.directions(samples) * space.directions(z_t)).sum(dim=-1)
    best = cosines.argmax(dim=0)  # [B]
    return samples[best, torch.arange(len(best), device=best.device)]


@torch.inference_mode()
def decode(
    part: Part,
    image_embedding: Tensor,
    text: TextStates,
    null: TextStates,
    random: SampleRandom,
    keep_image: bool = True,
    start: Tensor | None = None,
    eta: float | None = None,
    plain: bool = False,
) -> Tensor:
    """The decoder's picture in [-1, 1], float32 [B, 3, S, S].

    `null` is what guidance leads away from, as often as there are captions. `start` is x_T where
    it is not drawn; with `eta` it is DDIM whatever the part says, `plain` is what `invert` needs.
    """
    denoise = decoder_denoiser(part, image_embedding, text, null, keep_image, plain)
    side = part.config.objective.image_size
    return part.sample(denoise, (3, side, side), random, "decoder", start, eta)


def decoder_denoiser(
    part: Part,
    image_embedding: Tensor,
    text: TextStates,
    null: TextStates,
    keep_image: bool = True,
    plain: bool = False,
) -> Denoiser:
    """The decoder under its conditions, guided and kept in the range of pictures; or `plain`,
    without either.

    image_embedding [B, D] in the part's space; without `keep_image` it is dropped, as in training.
    """
    settings, objective = part.settings, part.config.objective
    assert isinstance(settings, DecoderPart)
    decoder = cast(Decoder, part.network)
    count = len(image_embedding)
    z_i = objective.embedding_scale * image_embedding
    told = _branches(settings, text, null)
    z_i = z_i.repeat(len(told.mask) // count, 1)
    kept = torch.arange(len(z_i), device=z_i.device) < (count if keep_image else 0)
    conditions = decoder.conditions(z_i, kept, *told)

    def network(x: Tensor, t: Tensor) -> Tensor:
        # All conditions, or where guidance is not needed those of the first half.
        out: Tensor = decoder.unet(x, t, *(condition[: len(x)] for condition in conditions))
        return out

    if plain:
        return denoiser(part.diffusion, network)
    denoise = _guided(part, settings, network)
    return clipped(denoise) if settings.threshold == "static" else dynamically_thresholded(denoise)


@torch.inference_mode()
def invert(part: Part, denoise: Denoiser, picture: Tensor) -> Tensor:
    """x_T from which DDIM under the same denoiser leads back to pictures in [-1, 1]."""
    return ddim_inversion(denoise, part.diffusion, picture, part.timesteps(), _REFINEMENTS)


def _branches(settings: GuidedPart, text: TextStates, null: TextStates) -> TextStates:
    """The captions, and behind them, where there is guidance, what it leads away from."""
    if settings.guidance == 1:
        return text
    return TextStates(*(torch.cat(pair) for pair in zip(text, null, strict=True)))


def _guided(part: Part, settings: GuidedPart, network: Network) -> Denoiser:
    """`network` holds the conditions of `_branches`."""
    if settings.guidance == 1:
        return denoiser(part.diffusion, network)
    return guided_denoiser(
        part.diffusion,
        network,
        settings.guidance,
        settings.guidance_interval,
        settings.guidance_rescale,
    )


@torch.inference_mode()
def upsample(part: Part, picture: Tensor, random: SampleRandom, purpose: str) -> Tensor:
    """One upsampler: [B, 3, S, S] → [B, 3, f · S, f · S], in [-1, 1]."""
    shape = (3, *(part.config.objective.factor * side for side in picture.shape[2:]))
    return part.sample(upsampler_denoiser(part, picture), shape, random, purpose)


def upsampler_denoiser(part: Part, picture: Tensor) -> Denoiser:
    """An upsampler of pictures in [-1, 1], [B, 3, S, S]."""
    objective = part.config.objective
    enlarged = enlarge(picture, objective.factor, objective.antialias)

    final = part.timesteps()[-1]

    def network(x: Tensor, t: Tensor) -> Tensor:
        network = part.network
        if part.last is not None and int(t[0]) == final:
            network = part.last
        out: Tensor = network(x, t, enlarged)
        return out

    return clipped(denoiser(part.diffusion, network))
