"""Counter-based random numbers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.rng import SampleRandom, philox

POSITIONS = st.lists(st.integers(0, 2**62), min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        # Known answers of Random123's kat_vectors for philox4x32-10.
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_published_answers(counter, key, expected):
    words = philox(tuple(torch.tensor([word]) for word in counter), key)
    assert " ".join(f"{int(word):08x}" for word in words) == expected


@settings(max_examples=40)
@given(POSITIONS, st.integers(0, 2**64 - 1), st.integers(1, 9))
def test_a_sample_draws_the_same_alone_and_in_any_batch(positions, seed, width):
    together = SampleRandom(seed, torch.tensor(positions))
    for row, position in enumerate(positions):
        alone = SampleRandom(seed, torch.tensor([position]))
        for draw in ("normal", "uniform"):
            whole = getattr(together, draw)("x", width)[row]
            assert torch.equal(whole, getattr(alone, draw)("x", width)[0])
        assert torch.equal(
            together.integers("x", 1000, width)[row], alone.integers("x", 1000, width)[0]
        )


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_that_would_be_another_ones_is_refused(seed):
    with pytest.raises(ValueError, match=rf"seed: got {seed}, expected 0 to 2\^64 - 1"):
        SampleRandom(seed, torch.arange(1))


def test_purposes_seeds_and_positions_differ():
    draws = [
        SampleRandom(seed, torch.tensor([position])).normal(purpose, 16)
        for seed in (0, 1, 1 << 40)
        for position in (0, 1, 1 << 40)
        for purpose in ("noise", "timestep")
    ]
    for i, first in enumerate(draws):
        for second in draws[:i]:
            assert not torch.equal(first, second)


def test_distributions():
    random = SampleRandom(3, torch.arange(20_000))
    normal = random.normal("n", 5).double()
    assert abs(normal.mean()) < 4 / math.sqrt(normal.numel())
    assert abs(normal.var() - 1) < 4 * math.sqrt(2 / normal.numel())
    assert abs((normal**4).mean() - 3) < 0.15
    correlation = torch.corrcoef(normal.T) - torch.eye(5, dtype=torch.float64)
    assert correlation.abs().max() < 0.03
    uniform = random.uniform("u", 5)
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 0.005
    counts = torch.bincount(random.integers("i", 10, 5).flatten(), minlength=10)
    assert counts.sum() == 100_000
    assert (counts - 10_000).abs().max() < 500


def test_positions_must_be_int64():
    with pytest.raises(ValueError, match=r"expected int64 \[B\]"):
        SampleRandom(0, torch.tensor([1.0]))


@pytest.mark.parametrize("high", [0, 2**31 + 1])
def test_high_is_checked(high):
    with pytest.raises(ValueError, match="expected 1 to 2"):
        SampleRandom(0, torch.tensor([1])).integers("x", high)
