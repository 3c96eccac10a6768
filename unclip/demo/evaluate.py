"""The report's figures that are the demo's own: controls, and CLIP scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from base.progress import Progress
from trainer.evaluation.pairs import Pairs
from trainer.evaluation.scores import clip_cosines, scene_scores
from trainer.sampling.cascade import Cascade

from .config import DemoConfig
from .draw import (
    Condition,
    draw,
    foreign_embedding,
    no_embedding,
    no_text,
    true_embedding,
)

CONTROLS: dict[str, Condition] = {
    "true_embedding": true_embedding,
    "foreign_embedding": foreign_embedding,
    "no_embedding": no_embedding,
    "no_text": no_text,
}


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


def clip_scores(cascade: Cascade, pictures: Tensor, pairs: Pairs) -> dict[str, float]:
    """Mean cosine of CLIP's embedding of a picture with its caption's, and with the true z_i."""
    made = torch.cat([cascade.look(part).cpu() for part in torch.split(pictures, 64)])
    return clip_cosines(made, pairs.image_embedding, pairs.text_embedding)
