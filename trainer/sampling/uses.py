"""What a cascade is used for (paper sections 2.3 and 3), in the words of `unclip generate`.

Functions take and give whole batches. A picture comes in as uint8 [B, 3, H, H] and goes out as
uint8 [B, 3, S, S] on the CPU; `random` places its draws, so that rows of the same position share
their noise. Pictures are described by two latents: z_i, which CLIP sees, and x_T, which holds what
the decoder needs beyond it (section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from base.errors import UserError
from trainer.models.clip import TextStates
from trainer.objectives.conditions import to_pixels
from trainer.rng import SampleRandom

from .cascade import Cascade
from .latents import slerp, turned_along


class Latents(NamedTuple):
    """A picture as the decoder has it."""

    z_i: Tensor  # float32 [B, D], of the cascade's space
    x_t: Tensor  # at t = T, float32 [B, 3, S, S]


def text(
    cascade: Cascade,
    captions: Sequence[str],
    random: SampleRandom,
    negative: str | None = None,
) -> Tensor:
    """Pictures of captions; guidance leads away from `negative`, else from the empty caption.

    Raises:
        UserError: there is a negative caption, and no guidance to lead away from it.
    """
    if negative is not None and not cascade.guided:
        raise UserError(
            "negative: the guidance of prior and decoder is 1, which leads away from nothing; "
            "set another, such as --set decoder.guidance=3"
        )
    text = cascade.captions(captions)
    null = None if negative is None else cascade.captions([negative] * len(captions))
    z_i = cascade.sample_prior(text, random, null)
    return _finish(cascade, cascade.decode(z_i, text, random, null=null), random)


def reconstruct(cascade: Cascade, pictures: Tensor, random: SampleRandom) -> Tensor:
    """The pictures again, from their own two latents."""
    return _from_latents(cascade, latents(cascade, pictures), random)


def variations(
    cascade: Cascade,
    pictures: Tensor,
    random: SampleRandom,
    eta: float = 1.0,
    invert: bool = True,
) -> Tensor:
    """Pictures that share the content (section 3.1): η > 0 lets go of what CLIP does not see.

    Without `invert` the noise begins anew, which keeps z_i alone.
    """
    z_i = cascade.look(pictures)
    text = cascade.no_captions(len(z_i))
    start = cascade.invert(pictures, z_i, text) if invert else None
    made = cascade.decode(z_i, text, random, start=start, eta=eta, plain=invert)
    return _finish(cascade, made, random)


def interpolate(
    cascade: Cascade, start: Tensor, end: Tensor, share: Tensor, random: SampleRandom
) -> Tensor:
    """Between pictures, both latents by slerp (section 3.2). share [B] in [0, 1]."""
    first, last = latents(cascade, start), latents(cascade, end)
    between = (slerp(*pair, share.to(cascade.device)) for pair in zip(first, last, strict=True))
    return _from_latents(cascade, Latents(*between), random)


def interpolate_texts(
    cascade: Cascade,
    start: Sequence[str],
    end: Sequence[str],
    share: Tensor,
    random: SampleRandom,
) -> Tensor:
    """Between captions, through the z_i that the prior gives them. share [B] in [0, 1]."""
    first, last = (cascade.sample_prior(cascade.captions(c), random) for c in (start, end))
    text = cascade.no_captions(len(share))
    z_i = slerp(first, last, share.to(first.device))
    return _finish(cascade, cascade.decode(z_i, text, random), random)


def text_diff(
    cascade: Cascade,
    pictures: Tensor,
    before: Sequence[str],
    after: Sequence[str],
    share: Tensor,
    random: SampleRandom,
) -> Tensor:
    """Pictures changed as from one caption to another (section 3.3). share [B], up to 0.5 or so."""
    found = latents(cascade, pictures)
    z_t0, z_t = (cascade.captions(captions).embedding for captions in (before, after))
    space = cascade.space
    first, start, end = (space.directions(z) for z in (found.z_i, z_t0, z_t))
    z_i = space.turned(found.z_i, turned_along(first, start, end, share.to(z_t.device)))
    return _from_latents(cascade, Latents(z_i, found.x_t), random)


def pca(
    cascade: Cascade, pictures: Tensor, mean: Tensor, directions: Tensor, random: SampleRandom
) -> Tensor:
    """What the decoder makes of z_i when only some principal directions are left (section 3.4).

    Of embeddings of unit length: mean [D]; directions [K, D], orthonormal.
    """
    z_i = cascade.look(pictures)
    mean, directions = mean.to(z_i), directions.to(z_i)
    seen = mean + (cascade.space.directions(z_i) - mean) @ directions.T @ directions
    z = cascade.space.turned(z_i, torch.nn.functional.normalize(seen, dim=-1))
    return _finish(cascade, cascade.decode(z, cascade.no_captions(len(z)), random), random)


def latents(cascade: Cascade, pictures: Tensor, text: TextStates | None = None) -> Latents:
    """Both latents of pictures: z_i by CLIP, x_T by DDIM inversion under z_i."""
    z_i = cascade.look(pictures)
    text = cascade.no_captions(len(z_i)) if text is None else text
    return Latents(z_i, cascade.invert(pictures, z_i, text))


def _from_latents(cascade: Cascade, found: Latents, random: SampleRandom) -> Tensor:
    text = cascade.no_captions(len(found.z_i))
    made = cascade.decode(found.z_i, text, random, start=found.x_t, eta=0.0, plain=True)
    return _finish(cascade, made, random)


def _finish(cascade: Cascade, picture: Tensor, random: SampleRandom) -> Tensor:
    return to_pixels(cascade.upsample(picture, random)).cpu()
