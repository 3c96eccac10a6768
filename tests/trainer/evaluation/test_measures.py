"""Measures against numbers that can be told by hand."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.evaluation.measures import psnr, score_prior


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
