"""The order of samples: a pure function of (seed, position), open at any place.

An epoch is a permutation of the shards, cut into blocks, and a permutation of the samples inside
each block. Nothing is padded or dropped; the next epoch begins where the last one ends.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from base.hashing import stable_hash

Ints = NDArray[np.int64]

_BLOCKS_KEPT = 8  # permuted blocks in memory; a batch seldom touches more than two


class Order:
    """Maps positions to samples; a sample is its place in the concatenation of all shards."""

    def __init__(self, sizes: Sequence[int], seed: int, shuffle_block: int) -> None:
        """`sizes`: samples of each shard, > 0; `shuffle_block`: shards in a block.

        Raises:
            ValueError: there is no sample.
        """
        self._sizes = np.asarray(sizes, dtype=np.int64)
        if len(self._sizes) == 0 or (self._sizes <= 0).any():
            raise ValueError(f"shard sizes: got {list(sizes)}, expected positive ones")
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)])  # [shards + 1]
        self._seed, self._shuffle_block = seed, shuffle_block
        self._epochs: OrderedDict[int, tuple[Ints, Ints]] = OrderedDict()
        self._blocks: OrderedDict[tuple[int, int], Ints] = OrderedDict()

    @property
    def epoch_size(self) -> int:
        """Samples in an epoch."""
        return int(self._starts[-1])

    def samples(self, positions: Ints) -> Ints:
        """The samples at `positions` (int64 [B], any order, any epoch), int64 [B]."""
        epochs, places = np.divmod(positions, self.epoch_size)
        result = np.empty_like(positions)
        for epoch in np.unique(epochs):
            _, block_starts = self._epoch(int(epoch))
            blocks = np.searchsorted(block_starts, places, side="right") - 1
            for block in np.unique(blocks[epochs == epoch]):
                chosen = (epochs == epoch) & (blocks == block)
                within = places[chosen] - block_starts[block]
                result[chosen] = self._block(int(epoch), int(block))[within]
        return result

    def _epoch(self, epoch: int) -> tuple[Ints, Ints]:
        """The epoch's permutation of shards, and the places where its blocks begin."""
        if epoch not in self._epochs:
            shards = permutation(len(self._sizes), self._seed, "shards", epoch)
            ends = np.cumsum(self._sizes[shards])[self._shuffle_block - 1 :: self._shuffle_block]
            starts = np.concatenate([[0], ends])
            # The last block's end, where it falls on the epoch's, begins no further block.
            self._epochs[epoch] = shards, starts[starts < self.epoch_size]
            _forget(self._epochs, 2)
        return self._epochs[epoch]

    def _block(self, epoch: int, block: int) -> Ints:
        """The samples of a block in their order."""
        key = epoch, block
        if key not in self._blocks:
            shards, _ = self._epoch(epoch)
            first = block * self._shuffle_block
            chosen = shards[first : first + self._shuffle_block]
            samples = np.concatenate(
                [np.arange(self._starts[shard], self._starts[shard + 1]) for shard in chosen]
            )
            self._blocks[key] = samples[
                permutation(len(samples), self._seed, "samples", epoch, block)
            ]
            _forget(self._blocks, _BLOCKS_KEPT)
        return self._blocks[key]


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


def share(start: int, count: int, rank: int, world_size: int) -> tuple[int, int]:
    """The [first, last) positions of a rank in the global batch [start, start + count)."""
    return start + count * rank // world_size, start + count * (rank + 1) // world_size


def cut(first: int, last: int, parts: int) -> list[tuple[int, int]]:
    """[first, last) in consecutive, nearly equal parts."""
    return [share(first, last - first, part, parts) for part in range(parts)]


def _forget(kept: OrderedDict[Any, Any], most: int) -> None:
    while len(kept) > most:
        kept.popitem(last=False)
