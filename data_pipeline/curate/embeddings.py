"""Duplicates by CLIP embedding, as SemDeDup finds them: within clusters of k-means.

The decisions do not depend on the number of threads. k-means runs on faiss's own kernels, which
treat each row by itself, and a cosine that float32 cannot tell from the bound is computed again.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from base.errors import UserError
from base.progress import Progress
from data_pipeline.curate.config import EmbeddingConfig
from data_pipeline.curate.duplicates import Hashes, Places
from data_pipeline.curate.samples import Samples
from data_pipeline.curate.together import Together
from data_pipeline.schema.dataset import img_emb_path

Rows16 = npt.NDArray[np.float16]
Rows32 = npt.NDArray[np.float32]

_EXHAUSTIVE = 20_000  # rows that are one cluster
_TRAINING_ROWS = 64  # a cluster
_ITERATIONS = 10
_BLOCK = 512
_SLACK = 1e-5  # more than float32 loses in a product of two unit vectors
_EXACT_AT_ONCE = 4096
_HASHED_AT_ONCE = 100_000
_GATHERED_BYTES = 1 << 30


def embedding_leaders(together: Together, ordered: Places, config: EmbeddingConfig) -> Places:
    """For rows in order of preference, [n]: the row that stays in each one's stead, or itself.

    Raises:
        UserError: a file of embeddings cannot be read or has no such rows.
    """
    reader = EmbeddingReader(together, config.set)
    cluster = _clusters(reader, ordered, config)
    places = np.argsort(cluster, kind="stable")  # by cluster, then by preference
    ends = np.flatnonzero(np.diff(cluster[places], append=-1)) + 1
    leader = np.array(ordered)
    with Progress("embedding duplicates", total=len(ordered), unit="rows") as bar:
        for group in _gathered_together(ends, reader.dim * 2):
            first, last = group[0][0], group[-1][1]
            vectors = reader.read(ordered[places[first:last]])
            for start, end in group:
                found = greedy_cosine(vectors[start - first : end - first], 1 - config.eps)
                members = places[start:end]
                leader[members] = ordered[members[found]]
                bar.advance(end - start)
    return leader


def greedy_cosine(vectors: Rows16, bound: float) -> Places:
    """Leaders of vectors, [n, D], best first: one goes when its cosine with a stayed one is above.

    The leader is the best of those.
    """
    leader = np.arange(len(vectors))
    stayed = np.empty(0, np.int64)
    for start in range(0, len(vectors), _BLOCK):
        places = np.arange(start, min(start + _BLOCK, len(vectors)))
        for first in range(0, len(stayed), _BLOCK * 8):
            if not len(places):
                break
            against = stayed[first : first + _BLOCK * 8]
            above = _above(vectors[places], vectors[against], bound)
            hit = above.any(axis=1)
            leader[places[hit]] = against[above[hit].argmax(axis=1)]
            places = places[~hit]
        above = np.tril(_above(vectors[places], vectors[places], bound), -1)
        stays = np.ones(len(places), np.bool_)
        for index in np.flatnonzero(above.any(axis=1)):
            near = np.flatnonzero(above[index] & stays)
            if len(near):
                stays[index] = False
                leader[places[index]] = places[near[0]]
        stayed = np.concatenate([stayed, places[stays]])
    return leader


def _above(left: Rows16, right: Rows16, bound: float) -> npt.NDArray[np.bool_]:
    """Whether the cosine of each pair is above the bound, [n, m]."""
    scores = _unit(left) @ _unit(right).T
    above = scores > bound
    doubtful = np.argwhere(np.abs(scores - bound) <= _SLACK)
    for start in range(0, len(doubtful), _EXACT_AT_ONCE):
        i, j = doubtful[start : start + _EXACT_AT_ONCE].T
        above[i, j] = _cosine(left[i], right[j]) > bound
    return np.asarray(above, np.bool_)


def _cosine(left: Rows16, right: Rows16) -> npt.NDArray[np.float64]:
    """Cosine of rows, [n], in float64 and in one fixed order of sums."""
    a, b = left.astype(np.float64), right.astype(np.float64)
    norms = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    return np.asarray((a * b).sum(axis=1) / norms, np.float64)


def _unit(rows: Rows16) -> Rows32:
    """Rows in float32, of norm 1."""
    wide = rows.astype(np.float32)
    return np.asarray(wide / np.sqrt((wide * wide).sum(axis=1, keepdims=True)), np.float32)


def _clusters(
    reader: EmbeddingReader, ordered: Places, config: EmbeddingConfig
) -> npt.NDArray[np.int32]:
    """The cluster of each row, [n]."""
    count = config.clusters or _cluster_count(len(ordered))
    if count > len(ordered):
        raise UserError(
            f"embedding_duplicates.clusters: got {count}, expected at most {len(ordered)}, "
            "the rows that the rules before it left"
        )
    cluster = np.zeros(len(ordered), np.int32)
    if count == 1:
        return cluster
    import faiss

    by_row = np.argsort(ordered, kind="stable")
    random = np.random.default_rng(config.seed)
    size = min(len(ordered), count * _TRAINING_ROWS)
    chosen = ordered[by_row][np.sort(random.choice(len(ordered), size, replace=False))]
    with _threads_do_not_matter():
        kmeans = faiss.Kmeans(
            reader.dim,
            count,
            niter=_ITERATIONS,
            seed=config.seed,
            spherical=True,
            min_points_per_centroid=1,
            max_points_per_centroid=_TRAINING_ROWS,
        )
        kmeans.train(_unit(reader.read(chosen)))
        with Progress("clusters", total=len(ordered), unit="rows") as bar:
            for start in range(0, len(ordered), _EXHAUSTIVE):
                part = by_row[start : start + _EXHAUSTIVE]
                _, nearest = kmeans.index.search(_unit(reader.read(ordered[part])), 1)
                cluster[part] = nearest[:, 0]
                bar.advance(len(part))
    return cluster


def _cluster_count(rows: int) -> int:
    return 1 if rows <= _EXHAUSTIVE else round(math.sqrt(rows))


@contextmanager
def _threads_do_not_matter() -> Iterator[None]:
    """Keeps faiss from BLAS, whose sums depend on how the work is cut into threads."""
    import faiss

    before = faiss.cvar.distance_compute_blas_threshold
    faiss.cvar.distance_compute_blas_threshold = 1 << 30
    try:
        yield
    finally:
        faiss.cvar.distance_compute_blas_threshold = before


def _gathered_together(ends: Places, row_bytes: int) -> Iterator[list[tuple[int, int]]]:
    """Neighbouring clusters, as (start, end), that are small enough to be in memory together."""
    group: list[tuple[int, int]] = []
    start = 0
    for end in ends.tolist():
        if group and (end - group[0][0]) * row_bytes > _GATHERED_BYTES:
            yield group
            group = []
        group.append((start, end))
        start = end
    if group:
        yield group


class EmbeddingReader:
    """Rows of a set's image embeddings, wherever they lie."""

    def __init__(self, together: Together, name: str | None) -> None:
        self._together = together
        self._parts = [_PartReader(part, name) for part in together.parts]
        self.dim = self._parts[0].dim

    def read(self, rows: Places) -> Rows16:
        """Embeddings of rows, [n, dim]; each shard's file is opened once."""
        result = np.empty((len(rows), self.dim), np.float16)
        places = self._together.part_of(rows)
        for place in np.unique(places):
            here = places == place
            start = self._together.starts[place]
            result[here] = self._parts[place].read(rows[here] - start)
        return result

    def hashes(self, rows: Places) -> Hashes:
        """64 bits of BLAKE2b of each row's embedding, [n]."""
        found = np.empty(len(rows), np.uint64)
        with Progress("embeddings", total=len(rows), unit="rows") as bar:
            for start in range(0, len(rows), _HASHED_AT_ONCE):
                part = rows[start : start + _HASHED_AT_ONCE]
                for place, row in enumerate(self.read(part), start):
                    digest = hashlib.blake2b(row.tobytes(), digest_size=8).digest()
                    found[place] = int.from_bytes(digest, "little")
                bar.advance(len(part))
        return found


class _PartReader:
    """The same for one DATASET."""

    def __init__(self, samples: Samples, name: str | None) -> None:
        self._samples = samples
        self._name = name
        full = next(commit.shard for commit in samples.commits if commit.kept)
        self.dim = int(self._open(full).shape[1])

    def read(self, rows: Places) -> Rows16:
        """Embeddings of rows, [n, dim]; each shard's file is opened once."""
        result = np.empty((len(rows), self.dim), np.float16)
        order = np.argsort(rows, kind="stable")
        ascending = rows[order]
        cuts = np.searchsorted(ascending, self._samples.starts)
        for shard in np.flatnonzero(np.diff(cuts)):
            part = slice(cuts[shard], cuts[shard + 1])
            stored = self._open(int(shard))
            result[order[part]] = stored[ascending[part] - self._samples.starts[shard]]
        if not np.isfinite(result).all() or not result.any(axis=1).all():
            path = img_emb_path(self._samples.root, 0, self._name).parent
            raise UserError(f"{path}: rows that are zero or not finite; run `unclip data verify`")
        return result

    def _open(self, shard: int) -> Any:
        path = img_emb_path(self._samples.root, shard, self._name)
        first, end = self._samples.shard_rows(shard)
        try:
            stored = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
        if stored.ndim != 2 or stored.dtype != np.float16 or len(stored) != end - first:
            raise UserError(
                f"{path}: got {stored.dtype} {stored.shape}, expected float16 "
                f"({end - first}, D); run `unclip data verify`"
            )
        return stored
