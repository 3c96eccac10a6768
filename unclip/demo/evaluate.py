"""The report's figures: scene scores, controls, prior, upsamplers, CLIP scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from base.progress import Progress
from data_pipeline.schema.scenes import Scene, is_unseen
from trainer.diffusion.degradations import enlarge, shrink
from trainer.evaluation.measures import psnr, score_prior
from trainer.evaluation.scenes import Verdict, judge, read_scene, score
from trainer.objectives.conditions import to_signal
from trainer.sampling.cascade import Cascade
from trainer.sampling.drawing import upsample

from .config import DemoConfig
from .draw import (
    Condition,
    draw,
    foreign_embedding,
    no_embedding,
    no_text,
    noise_of,
    true_embedding,
)
from .heldout import Pairs, mean_embedding

_MEASURED_AT_ONCE = 16

CONTROLS: dict[str, Condition] = {
    "true_embedding": true_embedding,
    "foreign_embedding": foreign_embedding,
    "no_embedding": no_embedding,
    "no_text": no_text,
}


def verdicts(pictures: Tensor, truths: Sequence[Scene]) -> list[Verdict]:
    """The verifier's word on uint8 pictures [N, 3, S, S]."""
    arrays = pictures.permute(0, 2, 3, 1).contiguous().numpy()
    return [judge(read_scene(a), truth) for a, truth in zip(arrays, truths, strict=True)]


def scene_scores(pictures: Tensor, pairs: Pairs) -> dict[str, Any]:
    """Scores by group over seen and unseen combinations."""
    assert pairs.truths is not None
    return score(verdicts(pictures, pairs.truths), [is_unseen(truth) for truth in pairs.truths])


def group_scores(pictures: Tensor, pairs: Pairs) -> dict[str, Any]:
    """Scores of pairs whose kind training has not shown: nothing in them was seen as it is."""
    return {
        group: {"right": value["seen"], "count": value["count"]}
        for group, value in scene_scores(pictures, pairs).items()
        if value["count"]
    }


def control_scores(
    cascade: Cascade,
    pictures: Tensor,
    pairs: Pairs,
    config: DemoConfig,
    folder: Path,
    bar: Progress,
) -> dict[str, Any]:
    """Scene scores with the decoder's conditions changed, on the same captions and noise.

    `pictures` [N, 3, S, S] are the system's own of these pairs: the row `prior`.
    """
    drawn = {"prior": pictures}
    for name, condition in CONTROLS.items():
        path = folder / f"control_{name}.npy"
        drawn[name] = draw(cascade, pairs, condition, config.sampling, path, bar)
    scores = {
        name: {group: value["seen"] for group, value in scene_scores(made, pairs).items()}
        for name, made in drawn.items()
    }
    return {**scores, "count": len(pairs)}


def prior_scores(cascade: Cascade, pairs: Pairs, train: Path, config: DemoConfig) -> dict[str, Any]:
    """The prior's embeddings of held-out captions against the true ones."""
    random = noise_of(pairs, config.sampling.seed, cascade.device)
    predicted = cascade.sample_prior(cascade.captions(pairs.captions), random).cpu()
    scores = score_prior(
        predicted, pairs.image_embedding, pairs.text_embedding, mean_embedding(train)
    )
    return asdict(scores)


def upsampler_scores(
    cascade: Cascade, pairs: Pairs, count: int, seed: int, bar: Progress
) -> dict[str, Any]:
    """PSNR on `count` true held-out pictures, beside that of bicubic enlargement."""
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


def clip_scores(cascade: Cascade, pictures: Tensor, pairs: Pairs) -> dict[str, float]:
    """Mean cosine of CLIP's embedding of a picture with its caption's, and with the true z_i."""
    made = torch.cat([cascade.look(part).cpu() for part in torch.split(pictures, 64)])
    n = len(made)
    return {
        "caption": float((made * pairs.text_embedding[:n]).sum(dim=1).mean()),
        "true_picture": float((made * pairs.image_embedding[:n]).sum(dim=1).mean()),
        "caption_of_true_picture": float(
            (pairs.image_embedding[:n] * pairs.text_embedding[:n]).sum(dim=1).mean()
        ),
    }
