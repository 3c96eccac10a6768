"""Equal and near hashes, against comparing all with all."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.curate import duplicates
from data_pipeline.curate.duplicates import components, equal_leaders, near_leaders, preferred

BITS = st.sets(st.integers(0, 63), max_size=6)


@st.composite
def hash_lists(draw: st.DrawFn) -> npt.NDArray[np.uint64]:
    """Hashes in clusters, so that there are near ones and chains of them."""
    centres = draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4))
    member = st.tuples(st.sampled_from(centres), BITS)
    members = draw(st.lists(member, max_size=40))
    values = [centre ^ sum(1 << bit for bit in bits) for centre, bits in members]
    return np.array(values, np.uint64)


def bits_apart(a: int, b: int) -> int:
    return (int(a) ^ int(b)).bit_count()


def brute_leaders(hashes: Sequence[int], distance: int) -> list[int]:
    """One stays unless a row that stayed before is near; its leader is the first of those."""
    leaders: list[int] = []
    for place, value in enumerate(hashes):
        near = [
            before
            for before in range(place)
            if leaders[before] == before and bits_apart(hashes[before], value) <= distance
        ]
        leaders.append(near[0] if near else place)
    return leaders


def brute_components(hashes: Sequence[int], distance: int) -> list[int]:
    found = list(hashes)
    while True:
        after = [
            min(
                b
                for b, value in zip(found, hashes, strict=True)
                if bits_apart(value, h) <= distance
            )
            for h in hashes
        ]
        if after == found:
            return found
        found = after


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that forty hashes need several, and edges are drawn together on the way."""
    monkeypatch.setattr(duplicates, "_BATCH", 8)
    monkeypatch.setattr(duplicates, "_MANY_EDGES", 10)


@pytest.mark.usefixtures("small_batches")
class TestAgainstBruteForce:
    """With batches that are smaller than the input."""

    @given(hash_lists(), st.integers(0, 10))
    def test_near_leaders(self, hashes: npt.NDArray[np.uint64], distance: int) -> None:
        assert near_leaders(hashes, distance).tolist() == brute_leaders(hashes.tolist(), distance)

    @given(hash_lists(), st.integers(0, 10))
    def test_components(self, hashes: npt.NDArray[np.uint64], distance: int) -> None:
        found = components(hashes, distance).tolist()
        assert found == brute_components(hashes.tolist(), distance)

    @given(hash_lists(), st.integers(0, 10), st.randoms(use_true_random=False))
    def test_components_do_not_follow_the_order(
        self, hashes: npt.NDArray[np.uint64], distance: int, random: object
    ) -> None:
        order = np.random.default_rng(len(hashes)).permutation(len(hashes))
        shuffled = components(hashes[order], distance)
        assert np.array_equal(shuffled, components(hashes, distance)[order])


def test_every_flip_within_the_distance_is_found() -> None:
    """All 64 bits count, the one that no table covers too."""
    centre = 0x0123456789ABCDEF
    one = [centre ^ (1 << bit) for bit in range(64)]
    for distance in (1, 2, 3, 10):
        hashes = np.array([centre, *one], np.uint64)
        assert near_leaders(hashes, distance).tolist() == [0] * 65
    assert near_leaders(np.array([0, 2**11 - 1], np.uint64), 10).tolist() == [0, 1]


def test_many_batches_of_random_hashes_with_planted_neighbours() -> None:
    random = np.random.default_rng(0)
    base = random.integers(0, 2**63, 5000).astype(np.uint64)
    flips = np.array(
        [sum(1 << int(b) for b in random.choice(64, 4, False)) for _ in base], np.uint64
    )
    leaders = near_leaders(np.concatenate([base, base ^ flips]), 4)
    assert leaders[:5000].tolist() == list(range(5000))
    assert leaders[5000:].tolist() == list(range(5000))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=30))
def test_equal_leaders_are_the_first_of_equal_rows(pairs: list[tuple[int, int]]) -> None:
    rows = np.array(pairs, np.uint64).reshape(-1, 2)
    assert equal_leaders(rows[:, 0], rows[:, 1]).tolist() == [pairs.index(pair) for pair in pairs]


def test_preference_is_highest_value_then_lowest_row() -> None:
    values = np.array([0.1, np.nan, 0.9, 0.9, np.nan, -1.0])
    assert preferred(np.arange(6), values).tolist() == [2, 3, 0, 5, 1, 4]
    assert preferred(np.array([5, 1, 0]), None).tolist() == [5, 1, 0]
