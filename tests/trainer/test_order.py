"""The order of samples: each once an epoch, open at any position, whoever reads."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.loader.mixture import Mixture, columns_of
from trainer.loader.order import Order, Shuffle, permutation

sizes_of_shards = st.lists(st.integers(1, 40), min_size=1, max_size=12)
shuffles = st.builds(
    Shuffle,
    streams=st.integers(1, 16),
    block=st.integers(1, 5),
    run=st.integers(1, 20),
    buffer=st.integers(1, 60),
)


@given(sizes_of_shards, st.integers(0, 2**40), shuffles, st.integers(0, 3))
def test_every_sample_stands_once_in_every_epoch(
    sizes: list[int], seed: int, shuffle: Shuffle, epoch: int
) -> None:
    order = Order(sizes, seed, shuffle)
    total = sum(sizes)
    draws = np.arange(epoch * total, (epoch + 1) * total)
    assert sorted(order.samples(draws).tolist()) == list(range(total))


@given(sizes_of_shards, st.integers(0, 9), shuffles, st.data())
def test_any_draw_is_reached_without_those_before(
    sizes: list[int], seed: int, shuffle: Shuffle, data: st.DataObject
) -> None:
    total = sum(sizes)
    whole = Order(sizes, seed, shuffle).samples(np.arange(3 * total))
    wanted = data.draw(st.lists(st.integers(0, 3 * total - 1), min_size=1, max_size=9))
    fresh = Order(sizes, seed, shuffle).samples(np.array(wanted))
    assert fresh.tolist() == whole[wanted].tolist()


@given(sizes_of_shards, st.integers(0, 9), shuffles, st.integers(0, 2))
def test_groups_say_at_which_draws_their_samples_stand(
    sizes: list[int], seed: int, shuffle: Shuffle, epoch: int
) -> None:
    order = Order(sizes, seed, shuffle)
    draws = np.arange(epoch * sum(sizes), (epoch + 1) * sum(sizes))
    seen = []
    for key, chosen in order.keys(draws):
        group = order.group(key)
        assert draws[chosen].tolist() == group.draws.tolist()
        assert order.samples(group.draws).tolist() == group.samples.tolist()
        assert len(group.draws) <= max(shuffle.buffer // shuffle.run, 1) * shuffle.run
        seen += group.draws.tolist()
    assert sorted(seen) == draws.tolist()


@given(sizes_of_shards, shuffles)
def test_streams_are_equally_long_and_take_turns(sizes: list[int], shuffle: Shuffle) -> None:
    order = Order(sizes, 1, shuffle)
    assert shuffle.streams % order.streams == 0
    assert order.streams <= len(sizes)
    draws = np.arange(sum(sizes) // order.streams * order.streams)
    for key, chosen in order.keys(draws):
        assert set((draws[chosen] % order.streams).tolist()) == {key.stream}


def test_a_group_is_a_few_long_reads() -> None:
    """Runs of 16 samples side by side, out of two shards at a time."""
    order = Order([100] * 12, 5, Shuffle(streams=3, block=2, run=16, buffer=64))
    for key, _ in order.keys(np.arange(1200)):
        samples = np.sort(order.group(key).samples)
        assert (np.diff(samples) > 1).sum() + 1 <= 4
        assert len(set((samples // 100).tolist())) <= 2


def test_epochs_seeds_and_settings_are_shuffled_differently() -> None:
    def order(seed: int, epoch: int, **settings: int) -> list[int]:
        draws = np.arange(epoch * 300, (epoch + 1) * 300)
        shuffle = Shuffle(**{"streams": 2, "block": 2, "run": 10, "buffer": 50, **settings})
        return Order([100, 100, 100], seed, shuffle).samples(draws).tolist()

    orders = [order(0, 0), order(0, 1), order(1, 0), list(range(300))]
    orders += [order(0, 0, **{name: 1}) for name in ("streams", "block", "run", "buffer")]
    for index, one in enumerate(orders):
        for other in orders[index + 1 :]:
            assert one != other


def test_neighbours_come_apart() -> None:
    """Two samples side by side in a shard are on average a third of a buffer of turns apart."""
    sizes = [1000] * 32
    order = Order(sizes, 3, Shuffle(streams=8, block=2, run=25, buffer=500))
    places = np.empty(32_000, np.int64)
    places[order.samples(np.arange(32_000))] = np.arange(32_000)
    assert np.abs(np.diff(places)).mean() > 500 / 3 * 8


def test_the_order_is_the_same_for_ever() -> None:
    """Golden: another order would silently break the continuation of old runs."""
    order = Order([3, 5, 4], 7, Shuffle(streams=2, block=2, run=2, buffer=4))
    assert order.samples(np.arange(24)).tolist() == ORDER
    assert permutation(10, 3, "samples", 0, 1).tolist() == PERMUTATION


ORDER = [0, 9, 4, 10, 3, 8, 1, 11, 5, 6, 2, 7, 10, 7, 9, 2, 11, 6, 8, 4, 0, 3, 1, 5]
PERMUTATION = [3, 5, 6, 2, 1, 7, 9, 0, 8, 4]


def test_permutation_is_uniform_enough() -> None:
    """Chi-square of where each of 8 items lands over 4,000 permutations."""
    counts = np.zeros((8, 8))
    for trial in range(4000):
        counts[np.arange(8), permutation(8, "test", trial)] += 1
    chi_square = ((counts - 500) ** 2 / 500).sum()
    assert chi_square < 86  # 49 degrees of freedom, p = 0.001


def test_no_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="shard sizes"):
        Order([], 0, Shuffle())


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 5000), st.data())
def test_every_position_is_one_draw_of_one_source(
    weights: list[int], start: int, data: st.DataObject
) -> None:
    mixture = Mixture(columns_of(weights, sum(weights)))
    positions = np.arange(start, start + data.draw(st.integers(1, 200)))
    found = np.full(len(positions), -1)
    for source, chosen, draws in mixture.split(positions):
        assert (np.diff(draws) == 1).all()
        assert mixture.positions(source, draws).tolist() == positions[chosen].tolist()
        assert (found[chosen] == -1).all()
        found[chosen] = source
    assert (found >= 0).all()


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_shares_are_exact_in_every_round_and_spread_in_it(weights: list[int]) -> None:
    columns = columns_of(weights, sum(weights))
    if len(weights) > 1:
        assert np.bincount(columns).tolist() == weights
    for source, weight in enumerate(weights):
        seen = np.cumsum(np.asarray(columns) == source)
        due = np.arange(1, len(columns) + 1) * weight / sum(weights)
        assert np.abs(seen - due).max() <= len(weights)


def test_weights_that_the_streams_cannot_give_are_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.01 of 1\.01 would be .* raise `streams`"):
        columns_of([1, 0.01], 64)
