"""Duplicates by equal or by near hashes. All work on rows in order of preference, best first.

A result is `leader`, [n]: a row's own place when it stays, else the place of the row that stays
instead. Rows are judged from the best on: one stays unless a row that stayed before is near it.
So rows that stay are never near each other, and whoever goes is near its leader, not near a chain.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from base.progress import Progress

Places = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]

_BATCH = 2048  # hashes that are looked up, and compared with each other, at once
_TABLES = 3  # of 21 bits: with d wrong bits, one table has at most d // 3 of them
_TABLE_BITS = 21
_MANY_EDGES = 1 << 22


def preferred(rows: Places, prefer: npt.NDArray[np.float64] | None) -> Places:
    """Rows in order of preference: the highest value first, no value last, then the lowest row."""
    if prefer is None:
        return rows
    return rows[np.lexsort((rows, -prefer[rows]))]


def equal_leaders(*columns: Hashes) -> Places:
    """Leaders of rows that are equal in all columns, each [n]."""
    order = np.lexsort(columns)  # stable: equal rows keep their order
    new = np.ones(len(order), np.bool_)
    if len(order):
        new[1:] = False
        for column in columns:
            new[1:] |= column[order[1:]] != column[order[:-1]]
    leader = np.empty(len(order), np.int64)
    leader[order] = order[np.flatnonzero(new)][np.cumsum(new) - 1] if len(order) else order
    return leader


def near_leaders(hashes: Hashes, distance: int) -> Places:
    """Leaders of hashes, [n], that differ from another one in at most `distance` bits."""
    leader = equal_leaders(hashes)
    if distance == 0:
        return leader
    different = np.flatnonzero(leader == np.arange(len(leader)))
    with Progress("near hashes", total=len(different), unit="hashes") as bar:
        near = different[_greedy(_bytes(hashes[different]), distance, bar)]
    leader_of = np.arange(len(leader))
    leader_of[different] = near
    return leader_of[leader]


def components(hashes: Hashes, distance: int) -> Hashes:
    """For each hash, [n], the smallest one that steps of at most `distance` bits lead to."""
    if distance == 0:
        return hashes
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    unique, inverse = np.unique(hashes, return_inverse=True)
    count = len(unique)

    def labels(edges: Places) -> Places:
        """The component of each, [count], named by its first member."""
        ones = np.ones(len(edges), np.bool_)
        graph = coo_array((ones, (edges[:, 0], edges[:, 1])), shape=(count, count))
        _, found = connected_components(graph, directed=False)
        _, first = np.unique(found, return_index=True)
        return np.asarray(first[found], np.int64)

    parts = [np.empty((0, 2), np.int64)]
    with Progress("hashes that hang together", total=count, unit="hashes") as bar:
        for edges in _edges(_bytes(unique), distance):
            parts.append(edges)
            if sum(map(len, parts)) > _MANY_EDGES + 2 * count:
                parts = [np.stack([np.arange(count), labels(np.concatenate(parts))], 1)]
            bar.advance(min(_BATCH, count - bar.done))
    return np.asarray(unique[labels(np.concatenate(parts))][inverse.reshape(-1)], np.uint64)


def _bytes(hashes: Hashes) -> npt.NDArray[np.uint8]:
    """Hashes as faiss takes them, [n, 8]."""
    return np.ascontiguousarray(hashes).view(np.uint8).reshape(-1, 8)


def _index(distance: int) -> Any:
    """Finds every hash within `distance`: some table has few enough wrong bits to be probed."""
    import faiss

    index = faiss.IndexBinaryMultiHash(64, _TABLES, _TABLE_BITS)
    index.nflip = distance // _TABLES
    return index


def _greedy(codes: npt.NDArray[np.uint8], distance: int, bar: Progress) -> Places:
    """Leaders of different hashes, [n, 8]."""
    leader = np.arange(len(codes))
    index = _index(distance)
    stayed = np.empty(0, np.int64)  # places, in the order in which the index knows them
    for start in range(0, len(codes), _BATCH):
        block = codes[start : start + _BATCH]
        places = np.arange(start, start + len(block))
        if len(stayed):
            limits, _, found = index.range_search(block, distance + 1)
            hit = limits[1:] > limits[:-1]
            if hit.any():
                best = np.minimum.reduceat(found, limits[:-1][hit].astype(np.int64))
                leader[places[hit]] = stayed[best]
            places = places[~hit]
        leader[places] = places[_greedy_within(codes[places], distance)]
        new = places[leader[places] == places]
        index.add(codes[new])
        stayed = np.concatenate([stayed, new])
        bar.advance(len(block), left=len(stayed))
    return leader


def _greedy_within(codes: npt.NDArray[np.uint8], distance: int) -> Places:
    """Leaders within one batch, where all are compared with all."""
    import faiss

    leader = np.arange(len(codes))
    if len(codes) < 2:
        return leader
    index = faiss.IndexBinaryFlat(64)
    index.add(codes)
    limits, _, found = index.range_search(codes, distance + 1)
    for place in np.flatnonzero(np.diff(limits.astype(np.int64)) > 1):
        near = found[limits[place] : limits[place + 1]]
        near = near[near < place]
        near = near[leader[near] == near]
        if len(near):
            leader[place] = near.min()
    return leader


def _edges(codes: npt.NDArray[np.uint8], distance: int) -> Iterator[Places]:
    """Pairs of places of near hashes, [m, 2]."""
    index = _index(distance)
    index.add(codes)
    for start in range(0, len(codes), _BATCH):
        block = codes[start : start + _BATCH]
        limits, _, found = index.range_search(block, distance + 1)
        from_ = np.repeat(np.arange(start, start + len(block)), np.diff(limits.astype(np.int64)))
        yield np.stack([from_, found.astype(np.int64)], 1)
