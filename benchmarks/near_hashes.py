"""Perceptual-hash duplicates: our look-up in tables against comparing all with all, both by faiss.

    python -m benchmarks.near_hashes --count 200000 --distance 4

Prints the seconds of both, their ratio, and the memory that ours takes for each hash. Hashes are
random, and one in ten comes again with a few bits flipped. With --alone only ours runs, for counts
that all pairs would take hours for.
"""

from __future__ import annotations

import argparse
import resource
import time

import faiss
import numpy as np

from data_pipeline.curate.duplicates import Hashes, Places, near_leaders

_BLOCK = 4096


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--distance", type=int, default=4)
    parser.add_argument("--alone", action="store_true")
    options = parser.parse_args()
    hashes = planted(options.count, options.distance)
    before = _peak()
    start = time.perf_counter()
    leaders = near_leaders(hashes, options.distance)
    ours = time.perf_counter() - start
    dropped = int((leaders != np.arange(len(leaders))).sum())
    per_row = (_peak() - before) / options.count
    print(f"{options.count:,} hashes, distance {options.distance}: {dropped:,} dropped")
    print(f"ours: {ours:.1f} s, {options.count / ours:,.0f} hashes/s, {per_row:.0f} bytes a hash")
    if options.alone:
        return
    start = time.perf_counter()
    followers = all_pairs(hashes, options.distance)
    peer = time.perf_counter() - start
    assert followers >= dropped, "all pairs found fewer"
    print(f"all pairs: {peer:.1f} s; ratio {peer / ours:.1f}")


def planted(count: int, distance: int) -> Hashes:
    """Random hashes, of which one in ten is another one with up to `distance` bits flipped."""
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**64, count, dtype=np.uint64)
    near: Places = random.permutation(count)[: count // 10]
    flips = np.zeros(len(near), np.uint64)
    for _ in range(distance):
        flips |= np.uint64(1) << random.integers(0, 64, len(near), dtype=np.uint64)
    hashes[near] = hashes[(near + 1) % count] ^ flips
    return hashes


def all_pairs(hashes: Hashes, distance: int) -> int:
    """How many hashes have another one near that comes before them."""
    codes = hashes.view(np.uint8).reshape(-1, 8)
    index = faiss.IndexBinaryFlat(64)
    index.add(codes)
    found = 0
    for start in range(0, len(codes), _BLOCK):
        limits, _, near = index.range_search(codes[start : start + _BLOCK], distance + 1)
        rows = np.repeat(np.arange(len(limits) - 1), np.diff(limits.astype(np.int64)))
        found += len(np.unique(rows[near < rows + start]))
    return found


def _peak() -> int:
    """Bytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
