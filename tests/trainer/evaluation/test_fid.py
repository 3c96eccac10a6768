"""The Fréchet distance against torchmetrics and scipy, and what it must not depend on."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from trainer.evaluation.fid import Moments, frechet_distance


class Given(nn.Module):
    """Takes features for pictures, which torchmetrics allows."""

    num_features = 6

    def forward(self, features: Tensor) -> Tensor:
        return features


def features(seed: int, count: int, width: int = 6, apart: float = 0.0) -> Tensor:
    random = np.random.default_rng(seed)
    mixed = random.standard_normal((count, width)) @ random.standard_normal((width, width))
    return torch.from_numpy(mixed + apart).float()


def distance(first: Tensor, second: Tensor) -> float:
    return frechet_distance(Moments.of(first), Moments.of(second))


@pytest.mark.parametrize(("counts", "apart"), [((50, 40), 0.0), ((300, 300), 2.0), ((7, 9), 30.0)])
def test_torchmetrics_says_the_same_of_the_same_features(
    counts: tuple[int, int], apart: float
) -> None:
    real, made = features(1, counts[0]), features(2, counts[1], apart=apart)
    metric = FrechetInceptionDistance(feature=Given(), normalize=True).set_dtype(torch.float64)
    metric.update(real, real=True)
    metric.update(made, real=False)
    assert distance(real, made) == pytest.approx(float(metric.compute()), rel=1e-6)


def test_scipy_says_the_same_of_the_root() -> None:
    real, made = features(3, 80).double().numpy(), features(4, 90).double().numpy()
    covariances = [np.cov(one, rowvar=False) for one in (real, made)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    apart = np.square(real.mean(0) - made.mean(0)).sum()
    expected = apart + np.trace(covariances[0] + covariances[1] - 2 * root)
    got = distance(torch.from_numpy(real), torch.from_numpy(made))
    assert got == pytest.approx(expected, rel=1e-9)


def test_normal_distributions_by_hand() -> None:
    """In one dimension it is (μ₁ - μ₂)² + (σ₁ - σ₂)²."""
    wide = torch.tensor([[-3.0], [3.0]]) / 2**0.5  # σ = 3
    narrow = torch.tensor([[4.0], [6.0]]) / 2**0.5  # σ = 1, μ = 5 / √2
    assert distance(wide, narrow) == pytest.approx(12.5 + 4)


@given(st.integers(0, 2**31), st.integers(2, 20), st.integers(2, 20))
def test_it_is_zero_of_itself_and_symmetric(seed: int, count: int, other: int) -> None:
    """Whatever the rank: of fewer features than dimensions the covariance is singular."""
    real, made = features(seed, count), features(seed + 1, other, apart=1.0)
    assert distance(real, real) == pytest.approx(0, abs=1e-4)
    assert distance(real, made) == pytest.approx(distance(made, real), rel=1e-5)


@given(st.integers(0, 2**31), st.integers(1, 5), st.randoms(use_true_random=False))
def test_it_depends_on_no_order_and_on_no_split_over_ranks(
    seed: int, ranks: int, random: np.random.Generator
) -> None:
    real, made = features(seed, 24), features(seed + 1, 30, apart=1.0)
    order = list(range(30))
    random.shuffle(order)
    shares = [made[order[rank::ranks]] for rank in range(ranks)]
    total = sum((Moments.of(share) for share in shares), start=Moments.none(6))
    assert total.count == 30
    got = frechet_distance(Moments.of(real), total)
    assert got == pytest.approx(distance(real, made), rel=1e-9)


def test_the_mean_of_the_ranks_distances_is_another_number() -> None:
    """What other trainers give; small shares are farther from everything."""
    real, made = features(5, 64), features(6, 64)
    halves = [distance(real[half::2], made[half::2]) for half in (0, 1)]
    whole = frechet_distance(
        Moments.of(real[::2]) + Moments.of(real[1::2]),
        Moments.of(made[::2]) + Moments.of(made[1::2]),
    )
    assert whole == pytest.approx(distance(real, made), rel=1e-9)
    assert abs(sum(halves) / 2 - whole) > 0.05 * whole


def test_far_from_the_origin_nothing_is_lost() -> None:
    """Sums are float64: float32 would lose the covariance in the square of the mean."""
    real, made = features(7, 200), features(8, 200)
    assert distance(real + 1000, made + 1000) == pytest.approx(distance(real, made), rel=1e-2)


def test_one_feature_has_no_covariance() -> None:
    with pytest.raises(ValueError, match="got 1, expected at least 2"):
        distance(features(0, 1), features(0, 5))
