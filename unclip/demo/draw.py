"""Pictures of held-out captions, drawn by the trained cascade; one a caption, never chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from base.files import atomic_path
from base.progress import Progress
from trainer.evaluation.pairs import Pairs
from trainer.models.clip import TextStates
from trainer.objectives.conditions import to_pixels
from trainer.rng import SampleRandom
from trainer.sampling.cascade import Cascade

from .config import Sampling


@dataclass(frozen=True)
class Group:
    """Pairs that are drawn together, and for each another one of all that are drawn."""

    pairs: Pairs
    random: SampleRandom
    others: Pairs  # the pair itself only where there is no other
    others_random: SampleRandom


Condition = Callable[[Cascade, Group], tuple[Tensor, TextStates, bool]]
"""→ what the decoder is given: z_i [B, D], captions, and whether z_i is kept."""


def from_caption(cascade: Cascade, group: Group) -> tuple[Tensor, TextStates, bool]:
    """What the system does: z_i from the prior, and the caption."""
    text = cascade.captions(group.pairs.captions)
    return cascade.sample_prior(text, group.random), text, True


def true_embedding(cascade: Cascade, group: Group) -> tuple[Tensor, TextStates, bool]:
    """Control: the z_i of the true picture in place of the prior's."""
    pairs = group.pairs
    return pairs.image_embedding.to(cascade.device), cascade.captions(pairs.captions), True


def foreign_embedding(cascade: Cascade, group: Group) -> tuple[Tensor, TextStates, bool]:
    """Control: the prior's z_i of another caption, as that one's own picture has it."""
    foreign = cascade.sample_prior(cascade.captions(group.others.captions), group.others_random)
    return foreign, cascade.captions(group.pairs.captions), True


def no_embedding(cascade: Cascade, group: Group) -> tuple[Tensor, TextStates, bool]:
    """Control: z_i dropped, the caption alone."""
    pairs = group.pairs
    return pairs.image_embedding.to(cascade.device), cascade.captions(pairs.captions), False


def no_text(cascade: Cascade, group: Group) -> tuple[Tensor, TextStates, bool]:
    """Control: the caption dropped in the decoder, the prior's z_i alone."""
    z_i, _, _ = from_caption(cascade, group)
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

    A pair's noise follows from its place in the DATASET, among whichever pairs it is drawn. `bar`
    counts those that are drawn now.
    """
    if path.is_file():
        return torch.from_numpy(np.load(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = []
    for first in range(0, len(pairs), sampling.batch):
        group = _group(cascade, pairs, first, sampling)
        z_i, text, keep = condition(cascade, group)
        small = cascade.decode(z_i, text, group.random, keep)
        pictures.append(to_pixels(cascade.upsample(small, group.random)).cpu())
        bar.advance(len(group.pairs))
    result = torch.cat(pictures)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, result.numpy())
    return result


def _group(cascade: Cascade, pairs: Pairs, first: int, sampling: Sampling) -> Group:
    """The pairs from `first` on; the others lie half of all pairs away, whatever the batch."""
    places = range(first, min(first + sampling.batch, len(pairs)))
    some = pairs.take(places)
    others = pairs.take([(place + max(1, len(pairs) // 2)) % len(pairs) for place in places])
    random, others_random = (
        group.random(sampling.seed, cascade.device) for group in (some, others)
    )
    return Group(some, random, others, others_random)
