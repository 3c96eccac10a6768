"""The Inception Score against torchmetrics, and its bounds."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torchmetrics.image.inception import InceptionScore as Metric

from trainer.evaluation.inception_score import inception_score


class Given(nn.Module):
    """Takes logits for pictures."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits


def logits(seed: int, count: int, classes: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(count, classes, generator=generator)


def test_torchmetrics_says_the_same_of_the_whole() -> None:
    given_logits = logits(0, 60)
    metric = Metric(feature=Given(), splits=1)
    metric.update(given_logits)
    expected = float(metric.compute()[0])
    assert inception_score(given_logits).whole == pytest.approx(expected, rel=1e-5)


def test_the_parts_are_those_of_numpy() -> None:
    given_logits = logits(1, 45)
    p = given_logits.double().softmax(1).numpy()
    scores = []
    for part in (p[start::10] for start in range(10)):
        divergence = (part * (np.log(part) - np.log(part.mean(0)))).sum(1)
        scores.append(np.exp(divergence.mean()))
    found = inception_score(given_logits)
    assert found.mean == pytest.approx(np.mean(scores))
    assert found.deviation == pytest.approx(np.std(scores))


def test_the_most_and_the_least_that_there_is() -> None:
    certain = 1000 * torch.eye(5).repeat(4, 1)
    assert inception_score(certain).whole == pytest.approx(5)
    assert inception_score(torch.zeros(20, 5)).whole == pytest.approx(1)


@given(st.integers(0, 2**31), st.integers(1, 25))
def test_it_lies_between_one_and_the_classes_and_knows_no_order(seed: int, count: int) -> None:
    given_logits = logits(seed, count)
    found = inception_score(given_logits)
    assert 1 - 1e-9 <= found.whole <= 7
    assert inception_score(given_logits.flip(0)).whole == pytest.approx(found.whole)


def test_of_no_picture_there_is_none() -> None:
    with pytest.raises(ValueError, match="got none"):
        inception_score(torch.zeros(0, 5))
