"""Overlap of two sets against every distance by itself, and against sets that can be seen."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import trainer.evaluation.precision_recall as module
from trainer.evaluation.precision_recall import Overlap, overlap


def points(seed: int, count: int, width: int = 3, apart: float = 0.0) -> Tensor:
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.standard_normal((count, width)) + apart).float()


def by_hand(real: Tensor, generated: Tensor, k: int) -> Overlap:
    """One pair of features at a time."""
    sets = {"real": real.double().numpy(), "generated": generated.double().numpy()}
    reach = {
        name: [sorted(np.linalg.norm(one - other) for other in rows)[k] for one in rows]
        for name, rows in sets.items()
    }

    def inside(one: int, other: int, ball: str) -> bool:
        apart = np.linalg.norm(sets["generated"][one] - sets["real"][other])
        return bool(apart <= reach[ball][other if ball == "real" else one])

    made, true = range(len(generated)), range(len(real))
    return Overlap(
        precision=np.mean([any(inside(m, t, "real") for t in true) for m in made]),
        recall=np.mean([any(inside(m, t, "generated") for m in made) for t in true]),
        density=np.mean([sum(inside(m, t, "real") for t in true) / k for m in made]),
        coverage=np.mean([any(inside(m, t, "real") for m in made) for t in true]),
    )


@given(st.integers(0, 2**31), st.integers(4, 12), st.integers(4, 12), st.integers(1, 3))
def test_brute_force_says_the_same(seed: int, count: int, other: int, k: int) -> None:
    real, generated = points(seed, count), points(seed + 1, other, apart=0.7)
    expected = by_hand(real, generated, k)
    found = overlap(real, generated, k)
    for name in ("precision", "recall", "density", "coverage"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name)), name


@pytest.mark.parametrize("block", [1, 7, 40, 1 << 24])
def test_blocks_change_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real, generated = points(0, 30), points(1, 20, apart=0.7)
    whole = overlap(real, generated)
    monkeypatch.setattr(module, "_BLOCK", block)
    assert overlap(real, generated) == whole


@given(st.integers(0, 2**31), st.integers(4, 40))
def test_identical_sets_overlap_wholly(seed: int, count: int) -> None:
    real = points(seed, count)
    found = overlap(real, real[torch.randperm(count)])
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)
    assert found.density >= 1


def test_sets_far_apart_do_not() -> None:
    assert overlap(points(0, 20), points(1, 20, apart=100.0)) == Overlap(0, 0, 0, 0)


def test_one_good_picture_again_and_again_is_precise_and_recalls_nothing() -> None:
    real = points(0, 50)
    found = overlap(real, real[:1].repeat(20, 1))
    assert found.precision == 1
    assert found.recall <= 0.02
    assert found.coverage < 0.5


def test_far_from_the_origin_it_is_the_same() -> None:
    real, generated = points(0, 30).double(), points(1, 30, apart=0.7).double()
    assert overlap(real + 1e4, generated + 1e4) == overlap(real, generated)


def test_too_few_for_a_third_neighbour() -> None:
    with pytest.raises(ValueError, match="generated: got 3 features, expected more than 3"):
        overlap(points(0, 10), points(1, 3))
