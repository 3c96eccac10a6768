"""What is measured with a cascade: what its pictures show, its prior, its upsamplers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from base.progress import Progress
from data_pipeline.schema.scenes import Scene, is_unseen
from trainer.diffusion.degradations import enlarge, shrink
from trainer.objectives.conditions import to_signal
from trainer.sampling.cascade import Cascade
from trainer.sampling.drawing import upsample

from .measures import mean_cosine, psnr, score_prior
from .pairs import Pairs
from .scenes import Verdict, judge, read_scene, score

_MEASURED_AT_ONCE = 16


def verdicts(pictures: Tensor, truths: Sequence[Scene]) -> list[Verdict]:
    """The verifier's word on uint8 pictures [N, 3, S, S]."""
    arrays = pictures.permute(0, 2, 3, 1).contiguous().numpy()
    return [judge(read_scene(a), truth) for a, truth in zip(arrays, truths, strict=True)]


def scene_scores(pictures: Tensor, pairs: Pairs) -> dict[str, Any]:
    """Scores by group over seen and unseen combinations."""
    assert pairs.truths is not None
    return score(verdicts(pictures, pairs.truths), [is_unseen(truth) for truth in pairs.truths])


def prior_scores(
    cascade: Cascade,
    pairs: Pairs,
    mean: Tensor,
    seed: int,
    batch: int,
    bar: Progress | None = None,
) -> dict[str, Any]:
    """The prior's embeddings of captions against the true ones; `mean` [D] is what to compare with.

    `bar` counts the pairs.
    """
    made = []
    for some in _parts(pairs, batch):
        random = some.random(seed, cascade.device)
        drawn = cascade.sample_prior(cascade.captions(some.captions), random)
        made.append(cascade.space.directions(drawn).cpu())
        if bar is not None:
            bar.advance(len(some))
    scores = score_prior(torch.cat(made), pairs.image_embedding, pairs.text_embedding, mean)
    return asdict(scores)


def upsampler_scores(
    cascade: Cascade, pairs: Pairs, count: int, seed: int, bar: Progress
) -> dict[str, Any]:
    """PSNR on `count` true pictures, beside that of bicubic enlargement."""
    scores = {}
    for part in cascade.upsamplers:
        objective = part.config.objective
        true = to_signal(pairs.pictures(objective.image_size, count)).to(cascade.device)
        small = shrink(true, objective.factor)
        made = []
        for first in range(0, len(small), _MEASURED_AT_ONCE):
            few = small[first : first + _MEASURED_AT_ONCE]
            random = cascade.random(seed, range(first, first + len(few)))
            made.append(upsample(part, few, random, "measure"))
            bar.advance(len(few))
        bicubic = enlarge(small, objective.factor).clamp(-1, 1)
        scores[Path(part.settings.run).name] = {
            "psnr": float(psnr(torch.cat(made), true).mean()),
            "psnr_bicubic": float(psnr(bicubic, true).mean()),
            "count": len(true),
        }
    return scores


def clip_cosines(made: Tensor, true: Tensor, captions: Tensor) -> dict[str, float]:
    """Mean cosines of drawn pictures, true ones and captions, unit embeddings [N, D] each."""
    return {
        "caption": mean_cosine(made, captions),
        "true_picture": mean_cosine(made, true),
        "caption_of_true_picture": mean_cosine(true, captions),
    }


def _parts(pairs: Pairs, batch: int) -> Iterator[Pairs]:
    for first in range(0, len(pairs), batch):
        yield pairs.take(range(first, min(first + batch, len(pairs))))
