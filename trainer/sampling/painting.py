"""Painting a part of a picture anew, and beyond its border, with a cascade made for whole ones.

At the decoder's size the part is painted by RePaint; the upsamplers see the whole and keep to what
is known. What is known stays as it was, pixel by pixel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.diffusion.degradations import shrink
from trainer.diffusion.inpainting import keeping, repaint
from trainer.models.clip import TextStates
from trainer.objectives.conditions import to_pixels, to_signal
from trainer.rng import SampleRandom

from .cascade import Cascade
from .drawing import decoder_denoiser, upsampler_denoiser
from .inputs import require_size
from .windows import Box, painted_windows


@torch.inference_mode()
def inpaint(
    cascade: Cascade,
    pictures: Tensor,
    new: Tensor,
    captions: Sequence[str],
    random: SampleRandom,
) -> Tensor:
    """Pictures whose part `new` is painted as captions say. uint8 [B, 3, S, S], on the CPU

    pictures uint8 [B, 3, S, S], of the cascade's own side; new bool [B, 1, S, S].
    """
    text = cascade.captions(captions)
    z_i = cascade.sample_prior(text, random)
    return _paint(cascade, pictures, new, z_i, text, random, "paint")


@torch.inference_mode()
def outpaint(
    cascade: Cascade,
    pictures: Tensor,
    size: tuple[int, int],
    captions: Sequence[str] | None,
    random: SampleRandom,
) -> Tensor:
    """Pictures in the middle of larger ones. uint8 [B, 3, H, W], on the CPU

    pictures uint8 [B, 3, S, S], of the cascade's own side; size (H, W), each at least S. Without
    captions what is added is of the picture's own z_i.

    Raises:
        UserError: the size is smaller than the pictures, or of more than 100 million pixels.
    """
    require_size(size)
    side, (height, width) = cascade.side, size
    top, left = (height - side) // 2, (width - side) // 2
    known = Box(top, left, top + side, left + side)
    windows = list(painted_windows(size, known, side, max(side // 2, 1)))
    if captions is None:
        text, z_i = cascade.no_captions(len(pictures)), cascade.look(pictures)
    else:
        text = cascade.captions(captions)
        z_i = cascade.sample_prior(text, random)
    canvas = pictures.new_zeros(len(pictures), 3, height, width)
    empty = torch.ones(1, 1, height, width, dtype=torch.bool)
    canvas[:, :, known.top : known.bottom, known.left : known.right] = pictures
    empty[:, :, known.top : known.bottom, known.left : known.right] = False
    for number, (top, left, bottom, right) in enumerate(windows):
        window = (..., slice(top, bottom), slice(left, right))
        new = empty[window].expand(len(pictures), -1, -1, -1)
        if new.any():
            purpose = f"extend.{number}"
            canvas[window] = _paint(cascade, canvas[window], new, z_i, text, random, purpose)
            empty[window] = False
    return canvas


def _paint(
    cascade: Cascade,
    pictures: Tensor,
    new: Tensor,
    z_i: Tensor,
    text: TextStates,
    random: SampleRandom,
    purpose: str,
) -> Tensor:
    whole, new = to_signal(pictures).to(cascade.device), new.to(cascade.device)
    part = cascade.decoder
    side = part.config.objective.image_size
    known, hidden = _at(whole, new, side)
    null = cascade.no_captions(len(z_i))
    made = repaint(
        decoder_denoiser(part, z_i, text, null),
        part.diffusion,
        random.normal(f"{purpose}.start", 3, side, side),
        part.timesteps(),
        known,
        hidden,
        lambda draw: random.normal(f"{purpose}.{draw}", 3, side, side),
    )
    for level, upsampler in enumerate(cascade.upsamplers):
        denoise = upsampler_denoiser(upsampler, made)
        side *= upsampler.config.objective.factor
        known, hidden = _at(whole, new, side)
        kept = keeping(denoise, known, hidden)
        made = upsampler.sample(kept, (3, side, side), random, f"{purpose}.{level}")
    return torch.where(new.cpu(), to_pixels(made).cpu(), pictures)


def _at(whole: Tensor, new: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Pictures and what is new of them at a smaller side: a pixel with any new part is new."""
    factor = whole.shape[-1] // side
    return shrink(whole, factor), F.max_pool2d(new.float(), factor) > 0
