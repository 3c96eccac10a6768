"""The order of samples: each once an epoch, open at any position, whoever reads."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.loader.order import Order, cut, permutation, share

sizes_of_shards = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@given(sizes_of_shards, st.integers(0, 2**40), st.integers(1, 5), st.integers(0, 3))
def test_every_sample_stands_once_in_every_epoch(
    sizes: list[int], seed: int, block: int, epoch: int
) -> None:
    order = Order(sizes, seed, block)
    total = sum(sizes)
    positions = np.arange(epoch * total, (epoch + 1) * total)
    assert sorted(order.samples(positions).tolist()) == list(range(total))


@given(sizes_of_shards, st.integers(0, 9), st.integers(1, 5), st.data())
def test_any_position_is_reached_without_those_before(
    sizes: list[int], seed: int, block: int, data: st.DataObject
) -> None:
    total = sum(sizes)
    whole = Order(sizes, seed, block).samples(np.arange(3 * total))
    wanted = data.draw(st.lists(st.integers(0, 3 * total - 1), min_size=1, max_size=9))
    fresh = Order(sizes, seed, block).samples(np.array(wanted))
    assert fresh.tolist() == whole[wanted].tolist()


@given(
    st.integers(0, 1000),
    st.integers(1, 64),
    st.integers(1, 9),
    st.integers(1, 6),
    st.integers(1, 5),
)
def test_ranks_and_micro_batches_cut_a_batch_without_gap_or_overlap(
    start: int, batch: int, ranks: int, micro: int, steps: int
) -> None:
    read = [
        position
        for step in range(steps)
        for rank in range(ranks)
        for first, last in cut(*share(start + step * batch, batch, rank, ranks), micro)
        for position in range(first, last)
    ]
    assert read == list(range(start, start + steps * batch))


@given(st.integers(1, 500), st.integers(1, 100))
def test_shares_differ_by_at_most_one(batch: int, ranks: int) -> None:
    lengths = [last - first for first, last in (share(7, batch, r, ranks) for r in range(ranks))]
    assert max(lengths) - min(lengths) <= 1


def test_epochs_seeds_and_blocks_are_shuffled_differently() -> None:
    def order(seed: int, block: int, epoch: int) -> list[int]:
        positions = np.arange(epoch * 300, (epoch + 1) * 300)
        return Order([100, 100, 100], seed, block).samples(positions).tolist()

    orders = [order(0, 2, 0), order(0, 2, 1), order(1, 2, 0), order(0, 3, 0), list(range(300))]
    for index, one in enumerate(orders):
        for other in orders[index + 1 :]:
            assert one != other


def test_samples_of_a_block_come_from_its_shards_only() -> None:
    """Reading stays within few shards at a time: that is what blocks are for."""
    order = Order([10] * 12, 5, 3).samples(np.arange(120)) // 10
    for block in range(4):
        assert len(set(order[block * 30 : (block + 1) * 30].tolist())) == 3


def test_permutation_is_uniform_enough() -> None:
    """Chi-square of where each of 8 items lands over 4,000 permutations."""
    counts = np.zeros((8, 8))
    for trial in range(4000):
        counts[np.arange(8), permutation(8, "test", trial)] += 1
    chi_square = ((counts - 500) ** 2 / 500).sum()
    assert chi_square < 86  # 49 degrees of freedom, p = 0.001


def test_permutation_is_the_same_for_ever() -> None:
    """Golden: another order would silently break the continuation of old runs."""
    assert permutation(10, 3, "samples", 0, 1).tolist() == GOLDEN


GOLDEN = [3, 5, 6, 2, 1, 7, 9, 0, 8, 4]


def test_no_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="shard sizes"):
        Order([], 0, 1)
