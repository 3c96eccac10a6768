"""Measures against numbers that can be told by hand."""

from collections import defaultdict

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.multimodal import CLIPScore

import trainer.evaluation.measures as measures
from trainer.evaluation.measures import (
    clip_score,
    diversity,
    mean_cosine,
    psnr,
    recall_at_1,
    score_prior,
)


def unit(*rows: tuple[float, ...]) -> Tensor:
    return F.normalize(torch.tensor(rows, dtype=torch.float32), dim=1)


def test_psnr_is_that_of_numpy_for_each_picture() -> None:
    first, second = torch.rand(2, 3, 3, 5, 7, generator=torch.Generator().manual_seed(0)) * 2 - 1
    error = ((first.numpy().astype(np.float64) - second.numpy()) ** 2).mean(axis=(1, 2, 3))
    assert psnr(first, second).tolist() == pytest.approx(10 * np.log10(2**2 / error), rel=1e-5)


def test_psnr_of_known_errors() -> None:
    black, white = -torch.ones(1, 3, 4, 4), torch.ones(1, 3, 4, 4)
    assert psnr(black, white).item() == 0  # the largest error there is
    assert psnr(black, black + 0.2).item() == pytest.approx(20, abs=1e-4)
    assert psnr(white, white).isfinite().all()


TRUE = unit((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1))


def test_each_cosine_is_with_the_true_embeddings() -> None:
    predicted = unit((1, 1, 0), (1, 1, 0), (0, 0, 1), (-1, -1, -1))
    text = -TRUE
    found = score_prior(predicted, TRUE, text, torch.tensor([0.0, 0.0, 5.0]))
    assert found.cosine == pytest.approx((2 * 0.5**0.5 + 1 - 1) / 4)
    assert found.cosine_of_text == pytest.approx(-1)
    assert found.cosine_of_mean == pytest.approx((1 + 3**-0.5) / 4)  # whatever the mean's length
    assert found.count == 4


@pytest.mark.parametrize(
    ("order", "recall"), [((0, 1, 2, 3), 1), ((1, 2, 3, 0), 0), ((0, 1, 3, 2), 0.5)]
)
def test_recall_counts_the_rows_that_find_their_own(order: tuple[int, ...], recall: float) -> None:
    moved, mean = TRUE[list(order)], torch.ones(3)
    found = score_prior(moved, TRUE, TRUE, mean)
    assert (found.recall_at_1, found.recall_at_1_of_text) == (recall, 1)
    found = score_prior(TRUE, TRUE, moved, mean)
    assert (found.recall_at_1, found.recall_at_1_of_text) == (1, recall)


def test_recall_is_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, gallery = F.normalize(torch.randn(2, 23, 5, generator=generator), dim=2)
    whole = recall_at_1(queries, gallery)
    assert 0 < whole < 1
    monkeypatch.setattr(measures, "_AT_ONCE", 4)
    assert recall_at_1(queries, gallery) == whole


class Answers(nn.Module):
    """Stands for a CLIP of transformers whose embeddings are given."""

    config = None

    def __init__(self, pictures: Tensor, captions: Tensor) -> None:
        super().__init__()
        self.pictures, self.captions = pictures, captions

    def get_image_features(self, *_: object) -> Tensor:
        return self.pictures

    def get_text_features(self, *_: object) -> Tensor:
        return self.captions


def test_torchmetrics_says_the_same_of_the_same_embeddings() -> None:
    pictures, captions = TRUE, unit((1, 1, 0), (1, 2, 0), (0, 0, 1), (1, 1, 1))
    processor = defaultdict[str, Tensor](lambda: torch.zeros(4, 1))
    answers = (Answers(pictures, 3 * captions), lambda **_: processor)
    metric = CLIPScore(model_name_or_path=lambda: answers)  # type: ignore[arg-type]
    metric.update(torch.zeros(4, 3, 2, 2), ["a", "b", "c", "d"])
    assert clip_score(pictures, captions) == pytest.approx(float(metric.compute()), rel=1e-6)
    assert 100 * mean_cosine(pictures, captions) == pytest.approx(clip_score(pictures, captions))


def test_a_negative_cosine_counts_as_none_in_the_score() -> None:
    """Hessel et al. clip each picture's; torchmetrics clips the mean alone."""
    captions = unit((1, 1, 0), (0, 1, 0), (0, 0, -1), (1, 1, 1))
    assert mean_cosine(TRUE, captions) == pytest.approx((0.5**0.5 + 1 - 1 + 1) / 4)
    assert clip_score(TRUE, captions) == pytest.approx(100 * (0.5**0.5 + 1 + 0 + 1) / 4)


def test_diversity_is_of_all_pairs_of_one_caption() -> None:
    alike = TRUE[:1].expand(3, -1)
    assert diversity(alike[None]) == pytest.approx(0, abs=1e-7)
    assert diversity(TRUE[None, :3]) == pytest.approx(1)
    assert diversity(torch.stack([alike, TRUE[:3]])) == pytest.approx(0.5)
    with pytest.raises(ValueError, match=r"got \[4, 1\]"):
        diversity(TRUE[:, None])
