"""Pictures of held-out captions, drawn by the trained cascade; one a caption, never chosen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from base.files import atomic_path
from base.progress import Progress
from trainer.models.clip import TextStates
from trainer.objectives.conditions import to_pixels
from trainer.rng import SampleRandom
from trainer.sampling.cascade import Cascade

from .config import Sampling
from .heldout import Pairs

Condition = Callable[[Cascade, Pairs, SampleRandom], tuple[Tensor, TextStates, bool]]
"""→ what the decoder is given: z_i [B, D], captions, and whether z_i is kept."""


def from_caption(
    cascade: Cascade, pairs: Pairs, random: SampleRandom
) -> tuple[Tensor, TextStates, bool]:
    """What the system does: z_i from the prior, and the caption."""
    text = cascade.captions(pairs.captions)
    return cascade.sample_prior(text, random), text, True


def true_embedding(
    cascade: Cascade, pairs: Pairs, random: SampleRandom
) -> tuple[Tensor, TextStates, bool]:
    """Control: the z_i of the true picture in place of the prior's."""
    return pairs.image_embedding.to(cascade.device), cascade.captions(pairs.captions), True


def foreign_embedding(
    cascade: Cascade, pairs: Pairs, random: SampleRandom
) -> tuple[Tensor, TextStates, bool]:
    """Control: the prior's z_i of another caption."""
    z_i, text, _ = from_caption(cascade, pairs, random)
    return z_i.roll(len(z_i) // 2, dims=0), text, True


def no_embedding(
    cascade: Cascade, pairs: Pairs, random: SampleRandom
) -> tuple[Tensor, TextStates, bool]:
    """Control: z_i dropped, the caption alone."""
    return pairs.image_embedding.to(cascade.device), cascade.captions(pairs.captions), False


def no_text(
    cascade: Cascade, pairs: Pairs, random: SampleRandom
) -> tuple[Tensor, TextStates, bool]:
    """Control: the caption dropped in the decoder, the prior's z_i alone."""
    z_i, _, _ = from_caption(cascade, pairs, random)
    return z_i, cascade.no_captions(len(z_i)), True


def draw(
    cascade: Cascade,
    pairs: Pairs,
    condition: Condition,
    sampling: Sampling,
    path: Path,
    bar: Progress,
) -> Tensor:
    """The final pictures, uint8 [N, 3, S, S]; kept in `path` (npy) from an earlier call.

    `bar` counts those that are drawn now.
    """
    if path.is_file():
        return torch.from_numpy(np.load(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = []
    for first in range(0, len(pairs), sampling.batch):
        part = pairs.take(range(first, min(first + sampling.batch, len(pairs))))
        random = cascade.random(sampling.seed, first, len(part))
        z_i, text, keep = condition(cascade, part, random)
        small = cascade.decode(z_i, text, random, keep)
        pictures.append(to_pixels(cascade.upsample(small, random)).cpu())
        bar.advance(len(part))
    result = torch.cat(pictures)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, result.numpy())
    return result
