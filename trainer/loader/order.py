"""The order of samples: a pure function of (seed, draw), open at any place, made for long reads.

An epoch lays the shards, permuted, end to end and cuts them into streams of equal length, whose
samples take turns. A stream is shuffled twice: runs of samples that lie side by side inside blocks
of shards, then samples inside groups of a few runs. So a group is a handful of long reads, and
whoever reads a stream holds one group of it at a time. Nothing is padded or dropped.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from base.hashing import stable_hash
from trainer.loader.kept import Kept

Ints = NDArray[np.int64]

_GROUPS_KEPT = 4  # for each stream; readers go through them in order


@dataclass(frozen=True)
class Shuffle:
    """How far samples travel. Another value gives another order."""

    streams: int = 64  # that take turns; fewer where there are not as many shards
    block: int = 4  # shards whose runs are mixed
    run: int = 64  # samples that are read side by side
    buffer: int = 512  # samples of a stream that are mixed one by one


class GroupKey(NamedTuple):
    """A group's place in the order."""

    epoch: int
    stream: int
    block: int
    group: int


class Group(NamedTuple):
    """The samples that are mixed one by one, int64 [n], and their draws, int64 [n], ascending."""

    draws: Ints
    samples: Ints


class _Epoch(NamedTuple):
    """Shards in their order."""

    shards: Ints  # [shards]
    ends: Ints  # [shards], in samples of the epoch


class _Stream(NamedTuple):
    """The parts of shards that a stream reads one after another."""

    firsts: Ints  # [parts], samples
    counts: Ints  # [parts]
    blocks: Ints  # [blocks], where they begin in the stream


class _Block(NamedTuple):
    """Runs in their order."""

    firsts: Ints  # [runs], samples
    counts: Ints  # [runs]
    groups: Ints  # [groups + 1], where they begin in the block, and its end


class Order:
    """Maps draws to samples; a sample is its place in the concatenation of all shards."""

    def __init__(self, sizes: Sequence[int], seed: int, shuffle: Shuffle) -> None:
        """`sizes`: samples of each shard, > 0.

        Raises:
            ValueError: there is no sample.
        """
        self._sizes = np.asarray(sizes, dtype=np.int64)
        if len(self._sizes) == 0 or (self._sizes <= 0).any():
            raise ValueError(f"shard sizes: got {list(sizes)}, expected positive ones")
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._seed, self._shuffle = seed, shuffle
        self._runs = max(shuffle.buffer // shuffle.run, 1)  # of a group
        self.most = self._runs * shuffle.run  # samples of a group
        self.epoch_size = int(self._sizes.sum())
        self.streams = _fitting(shuffle.streams, len(self._sizes))
        cuts = self.epoch_size * np.arange(self.streams + 1, dtype=np.int64) // self.streams
        self._cuts = cuts  # [streams + 1], where streams begin in an epoch
        self._rounds = self.epoch_size // self.streams  # in which every stream has its turn
        self._longer = np.flatnonzero(np.diff(cuts) > self._rounds)  # have a turn more
        self._epochs = Kept(self._make_epoch, 3)
        self._opened = Kept(self._make_stream, 3 * self.streams)
        self._blocks = Kept(self._make_block, 2 * self.streams)
        self._groups = Kept(self._make_group, _GROUPS_KEPT * self.streams)

    def samples(self, draws: Ints) -> Ints:
        """The samples of `draws` (int64 [B], any order, any epoch), int64 [B]."""
        result = np.empty_like(draws)
        for key, chosen in self.keys(draws):
            group = self.group(key)
            result[chosen] = group.samples[np.searchsorted(group.draws, draws[chosen])]
        return result

    def keys(self, draws: Ints) -> list[tuple[GroupKey, Ints]]:
        """The groups that `draws` (int64 [B]) fall into, with the indices in `draws` of each."""
        streams, times = self.times(draws)
        epochs, turns = np.divmod(times, self._rounds + 1)
        found: list[tuple[GroupKey, Ints]] = []
        for epoch, stream, chosen in _alike(epochs, streams):
            opened, own = self._opened((epoch, stream)), turns[chosen]
            for number, inside in _parts(opened.blocks, own):
                block = self._blocks((epoch, stream, number))
                for group, last in _parts(block.groups, own[inside] - opened.blocks[number]):
                    key = GroupKey(epoch, stream, number, group)
                    found.append((key, chosen[inside][last]))
        return found

    def times(self, draws: Ints) -> tuple[Ints, Ints]:
        """The streams of `draws` (int64 [B]) and their places in them, int64 [B] each.

        Places ascend with the draws of a stream, and are neighbours within an epoch.
        """
        epochs, places = np.divmod(draws, self.epoch_size)
        turns, streams = np.divmod(places, self.streams)
        late = places >= self._rounds * self.streams
        if late.any():
            turns[late] = self._rounds
            streams[late] = self._longer[places[late] - self._rounds * self.streams]
        return streams, epochs * (self._rounds + 1) + turns

    def group(self, key: GroupKey) -> Group:
        """The samples of a group, in the order of their draws."""
        return self._groups(key)

    def following(self, key: GroupKey) -> GroupKey:
        """The next group of the same stream."""
        epoch, stream, number, group = key
        if group + 2 < len(self._blocks((epoch, stream, number)).groups):
            return key._replace(group=group + 1)
        if number + 1 < len(self._opened((epoch, stream)).blocks):
            return GroupKey(epoch, stream, number + 1, 0)
        return GroupKey(epoch + 1, stream, 0, 0)

    def _make_epoch(self, epoch: int) -> _Epoch:
        shards = permutation(len(self._sizes), self._seed, "shards", epoch)
        return _Epoch(shards, np.cumsum(self._sizes[shards]))

    def _make_stream(self, key: tuple[int, int]) -> _Stream:
        epoch, stream = key
        shards, ends = self._epochs(epoch)
        begin, end = self._cuts[stream], self._cuts[stream + 1]
        first = int(np.searchsorted(ends, begin, side="right"))
        last = int(np.searchsorted(ends, end, side="left"))
        parts = shards[first : last + 1]
        starts = ends[first : last + 1] - self._sizes[parts]  # in the epoch
        skipped = np.maximum(begin - starts, 0)
        counts = np.minimum(ends[first : last + 1], end) - starts - skipped
        blocks = (np.cumsum(counts) - counts)[:: self._shuffle.block]
        return _Stream(self._starts[parts] + skipped, counts, blocks)

    def _make_block(self, key: tuple[int, int, int]) -> _Block:
        epoch, stream, number = key
        firsts, counts, _ = self._opened((epoch, stream))
        part = slice(number * self._shuffle.block, (number + 1) * self._shuffle.block)
        firsts, counts = _cut_runs(firsts[part], counts[part], self._shuffle.run)
        order = permutation(len(firsts), self._seed, "runs", epoch, stream, number)
        firsts, counts = firsts[order], counts[order]
        starts = (np.cumsum(counts) - counts)[:: self._runs]
        return _Block(firsts, counts, np.append(starts, counts.sum()))

    def _make_group(self, key: GroupKey) -> Group:
        epoch, stream, number, group = key
        block = self._blocks((epoch, stream, number))
        part = slice(group * self._runs, (group + 1) * self._runs)
        samples = _spread(block.firsts[part], block.counts[part])
        samples = samples[permutation(len(samples), self._seed, "samples", *key)]
        begin = int(self._opened((epoch, stream)).blocks[number] + block.groups[group])
        return Group(self._draws(epoch, stream, begin, len(samples)), samples)

    def _draws(self, epoch: int, stream: int, begin: int, count: int) -> Ints:
        """The draws at which a stream has its turns begin … begin + count - 1."""
        turns = np.arange(begin, begin + count, dtype=np.int64)
        places = turns * self.streams + stream
        late = turns == self._rounds
        places[late] = self._rounds * self.streams + np.searchsorted(self._longer, stream)
        return epoch * self.epoch_size + places


def permutation(count: int, *parts: int | str) -> Ints:
    """A permutation of range(count) that depends on `parts` alone, in every version of numpy.

    Sorts the outputs of SplitMix64 (Steele et al., OOPSLA 2014) at counters that `parts` place.
    """
    start = np.uint64(stable_hash(*parts))
    with np.errstate(over="ignore"):
        mixed = start + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return np.argsort(mixed, kind="stable")


def _fitting(streams: int, shards: int) -> int:
    """The largest divisor of `streams` with a shard for each: what shares 64 shares 8 as well."""
    return max(n for n in range(1, min(streams, shards) + 1) if streams % n == 0)


def _cut_runs(firsts: Ints, counts: Ints, run: int) -> tuple[Ints, Ints]:
    """Parts of shards cut into runs; the last run of a part may be shorter."""
    numbers = -(-counts // run)  # runs of each part
    within = _spread(np.zeros_like(numbers), numbers) * run
    starts = np.repeat(firsts, numbers) + within
    return starts, np.minimum(run, np.repeat(firsts + counts, numbers) - starts)


def _spread(firsts: Ints, counts: Ints) -> Ints:
    """first, first + 1, … of each, count of them, end to end."""
    ends = np.cumsum(counts)
    return np.arange(counts.sum()) + np.repeat(firsts - ends + counts, counts)


def _parts(edges: Ints, values: Ints) -> list[tuple[int, slice | Ints]]:
    """Between which of the ascending `edges` the values lie, with the indices of each part.

    Neighbours mostly lie together. bisect keeps the interpreter's lock, for which a call of numpy
    would have to wait when other threads read; a list tells the ends of a few values sooner.
    """
    listed = values.tolist()
    low, high = min(listed), max(listed)
    first = bisect_right(edges, low) - 1
    if first + 1 == len(edges) or high < edges[first + 1]:
        return [(first, slice(None))]
    numbers = np.searchsorted(edges, values, side="right") - 1
    return [(number, indices) for number, _, indices in _alike(numbers, numbers)]


def _alike(first: Ints, second: Ints) -> list[tuple[int, int, Ints]]:
    """The different pairs of values, with the indices of each."""
    if len(first) == 0:
        return []
    order = np.lexsort((second, first))
    pairs = np.stack([first[order], second[order]])
    edges = np.flatnonzero((pairs[:, 1:] != pairs[:, :-1]).any(axis=0)) + 1
    return [(int(first[i[0]]), int(second[i[0]]), i) for i in np.split(order, edges)]
