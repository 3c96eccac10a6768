"""Figures are of the sets that they are named after."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from data_pipeline.scenes import render, scene
from data_pipeline.schema.scenes import is_unseen
from trainer.evaluation.fid import Moments
from trainer.evaluation.report import sweep_plot
from trainer.evaluation.results import diversity_results, picture_results, scene_results
from trainer.evaluation.scores import verdicts
from trainer.evaluation.seen import CLIP, INCEPTION, Gallery

CPU = torch.device("cpu")
COUNT = 20
CERTAIN, UNSURE = 1000 * torch.eye(5).repeat(4, 1), torch.zeros(COUNT, 5)


def gallery(seed: int, apart: float = 0.0, logits: Tensor | None = None) -> Gallery:
    generator = torch.Generator().manual_seed(seed)
    features = {CLIP: torch.randn(COUNT, 6, generator=generator) + apart}
    if logits is not None:
        features[INCEPTION] = torch.randn(COUNT, 8, generator=generator) - apart
    sums = {name: Moments.of(tensor) for name, tensor in features.items()}
    return Gallery(features, sums, logits, [])


def results(true: Gallery, made: Gallery, captions: Tensor | None = None) -> dict[str, Any]:
    captions = true.embeddings if captions is None else captions
    return picture_results(true, made, captions, CPU)


def test_the_inception_score_is_of_the_drawn_pictures() -> None:
    """Other trainers compute that of the true ones."""
    true, made = gallery(0, logits=CERTAIN), gallery(1, logits=UNSURE)
    assert results(true, made)["inception_score"]["whole"] == pytest.approx(1)
    assert results(made, true)["inception_score"]["whole"] == pytest.approx(5)


def test_without_inception_nothing_is_called_fid() -> None:
    found = results(gallery(0), gallery(1))
    assert (found["fid"], found["inception_score"], found["overlap"]) == (None, None, None)
    assert found["fid_clip"] > 0
    assert set(found["overlap_clip"]) == {"precision", "recall", "density", "coverage"}


def test_each_judge_s_features_give_that_one_s_figures() -> None:
    true, made = gallery(0, logits=CERTAIN), gallery(1, 3.0, CERTAIN)
    both = results(true, made)
    clip = results(gallery(0), gallery(1, 3.0))
    assert both["fid_clip"] == clip["fid_clip"]
    assert both["overlap_clip"] == clip["overlap_clip"]
    assert both["fid"] != pytest.approx(both["fid_clip"])
    near = Gallery({**made.features, INCEPTION: true.features[INCEPTION]}, {}, CERTAIN, [])
    sums = {**made.moments, INCEPTION: true.moments[INCEPTION]}
    found = results(true, Gallery(near.features, sums, CERTAIN, []))
    assert found["fid"] == pytest.approx(0, abs=1e-6)
    assert found["overlap"]["precision"] == 1
    assert found["fid_clip"] == both["fid_clip"]


def test_true_pictures_stand_beside_the_drawn_ones() -> None:
    true, made = gallery(0), gallery(1)
    captions = F.normalize(true.features[CLIP] + 0.1, dim=1)
    score = results(true, made, captions)["clip_score"]
    assert score["true"]["recall_at_1"] == 1
    assert score["drawn"]["recall_at_1"] < 0.5
    assert score["true"]["cosine"] > 0.9 > score["drawn"]["cosine"]
    assert score["drawn_and_true"] == pytest.approx(
        float((true.embeddings * made.embeddings).sum(1).mean())
    )


def test_diversity_compares_pictures_of_one_caption() -> None:
    """They follow each other."""
    alike = torch.eye(6)[[0, 0, 1, 1, 2, 2]]
    found = diversity_results(Gallery({CLIP: 7 * alike}, {}, None, []), 2)
    assert found == {"clip_distance": pytest.approx(0), "captions": 3, "pictures": 2}
    apart = torch.eye(6)
    found = diversity_results(Gallery({CLIP: apart}, {}, None, []), 3)
    assert found == {"clip_distance": pytest.approx(1), "captions": 2, "pictures": 3}


def test_scenes_are_counted_where_they_belong() -> None:
    truths = [scene(7, index, split)[0] for split in ("heldout", "unseen") for index in range(12)]
    shown = truths[:12] + truths[13:] + truths[12:13]  # those of unseen ones are all wrong
    pictures = torch.stack([torch.from_numpy(render(one, 64)) for one in shown])
    told = verdicts(pictures.permute(0, 3, 1, 2), truths)
    found = scene_results(told, [is_unseen(truth) for truth in truths])
    assert found["background"]["seen"]["right"] == 1
    assert found["background"]["seen"]["low"] == pytest.approx(0.025 ** (1 / 12))
    assert found["background"]["seen"]["high"] == 1
    for kind in ("seen", "unseen"):
        singles = found["single_all"][kind]["count"]
        assert singles + found["pair_all"][kind]["count"] == 12
        assert found["relation"][kind]["count"] == found["pair_all"][kind]["count"]
    assert (found["pair_all"]["unseen"]["right"] or 0) < 0.5
    nothing = scene_results([], [])["shape"]["seen"]
    assert nothing == {"right": None, "low": None, "high": None, "count": 0}


def test_a_sweep_is_drawn_whichever_distance_there_is() -> None:
    made = [
        {"guidance": g, "fid": fid, "fid_clip": 2.0, "clip_score": {"drawn": {"score": 20 + g}}}
        for g, fid in ((1.0, None), (2.0, None))
    ]
    assert sweep_plot(made).startswith(b"\x89PNG")
    assert sweep_plot([{**one, "fid": 9.0} for one in made]) != sweep_plot(made)
