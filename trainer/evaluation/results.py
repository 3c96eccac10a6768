"""The figures of pictures that were drawn, beside those of the true ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from .fid import frechet_distance
from .inception_score import inception_score
from .intervals import share_interval
from .measures import clip_score, diversity, mean_cosine, recall_at_1
from .precision_recall import overlap
from .scenes import Verdict, score
from .seen import CLIP, INCEPTION, Gallery

NEIGHBOURS = 3  # k of precision and recall, as in the paper


def picture_results(
    true: Gallery, made: Gallery, captions: Tensor, device: torch.device
) -> dict[str, Any]:
    """Of drawn pictures, row by row of the same captions [N, D] as the true ones.

    What is of CLIP's features is called so: an FID is of Inception's alone.
    """
    found: dict[str, Any] = {"fid": None, "inception_score": None, "overlap": None}
    for whose, name in ((CLIP, "_clip"), (INCEPTION, "")):
        if whose in true.features:
            real, drawn = (part.features[whose].to(device) for part in (true, made))
            found[f"fid{name}"] = frechet_distance(true.moments[whose], made.moments[whose])
            found[f"overlap{name}"] = asdict(overlap(real, drawn, NEIGHBOURS))
    if made.logits is not None:
        found["inception_score"] = inception_score(made.logits)._asdict()
    of_drawn, of_true = made.embeddings, true.embeddings
    return {
        **found,
        "clip_score": {
            "drawn": _of_captions(of_drawn, captions),
            "true": _of_captions(of_true, captions),
            "drawn_and_true": mean_cosine(of_drawn, of_true),
        },
    }


def diversity_results(made: Gallery, repeats: int) -> dict[str, Any]:
    """Of `repeats` pictures of each caption, which follow each other."""
    drawn = made.embeddings
    return {
        "clip_distance": diversity(drawn.reshape(-1, repeats, drawn.shape[1])),
        "captions": len(drawn) // repeats,
        "pictures": repeats,
    }


def scene_results(verdicts: Sequence[Verdict], unseen: Sequence[bool]) -> dict[str, Any]:
    """What a verifier found right, by group: of seen and of unseen combinations, with intervals."""
    found: dict[str, dict[str, Any]] = {}
    for kind, wanted in (("seen", False), ("unseen", True)):
        some = [told for told, flag in zip(verdicts, unseen, strict=True) if flag is wanted]
        for group, value in score(some, [wanted] * len(some)).items():
            found.setdefault(group, {})[kind] = _share(value[kind], int(value["count"] or 0))
    return found


def _share(right: float | None, count: int) -> dict[str, Any]:
    if right is None:
        return {"right": None, "low": None, "high": None, "count": 0}
    interval = share_interval(round(right * count), count)
    return {"right": right, **interval._asdict(), "count": count}


def _of_captions(pictures: Tensor, captions: Tensor) -> dict[str, float]:
    return {
        "cosine": mean_cosine(pictures, captions),
        "score": clip_score(pictures, captions),
        "recall_at_1": recall_at_1(pictures, captions),
    }
