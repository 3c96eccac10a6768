"""The rows nearest to a query: through a faiss index, or exactly, by looking at every row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from base.errors import UserError, one_line
from base.progress import Progress
from data_pipeline.search.embeddings import EmbeddingSet
from data_pipeline.search.layout import IndexRecord

Found = list[tuple[int, float]]  # (row, cosine), the best first; equal ones in their order
_CANDIDATES = 10  # times as many are asked of an index, and then put in order by their stored rows
_LEAST_CANDIDATES = 100


def nearest_exactly(embeddings: EmbeddingSet, query: npt.NDArray[np.float32], count: int) -> Found:
    """Compares the query [D] with every row, in blocks."""
    rows, scores = np.empty(0, np.int64), np.empty(0, np.float32)
    with Progress("search", embeddings.rows, "rows") as bar:
        for first, block in embeddings.blocks():
            scores = np.concatenate([scores, _cosines(block, query)])
            rows = np.concatenate([rows, np.arange(first, first + len(block))])
            best = _best(rows, scores, count)
            rows, scores = rows[best], scores[best]
            bar.advance(len(block))
    return _pairs(rows, scores)


def nearest_by_index(
    path: Path,
    record: IndexRecord,
    embeddings: EmbeddingSet,
    query: npt.NDArray[np.float32],
    count: int,
) -> Found:
    """Asks the index for candidates; scores are those of the stored rows, whatever it rounds.

    Raises:
        UserError: the index is damaged, or not of these rows.
    """
    import faiss

    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
    except RuntimeError as error:
        raise _damaged(path, embeddings, _first_line(error)) from error
    if (index.ntotal, index.d) != (record.rows, embeddings.clip.dim):
        told = f"{index.ntotal} rows of {index.d}"
        raise _damaged(path, embeddings, f"{told}, expected {record.rows} of {embeddings.clip.dim}")
    wanted = min(max(_CANDIDATES * count, _LEAST_CANDIDATES), embeddings.rows)
    _, found = index.search(query[None], wanted)
    rows = np.unique(found[0][found[0] >= 0])  # -1: fewer than asked for
    scores = _cosines(embeddings.take(rows.tolist()), query)
    best = _best(rows, scores, count)
    return _pairs(rows[best], scores[best])


def _cosines(rows: npt.NDArray[Any], query: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Of rows [n, D] with a query [D]; each as if it were alone, so that blocks do not matter."""
    cosines: npt.NDArray[np.float32] = np.einsum("nd,d->n", rows.astype(np.float32), query)
    return cosines


def _best(
    rows: npt.NDArray[np.int64], scores: npt.NDArray[np.float32], count: int
) -> npt.NDArray[np.int64]:
    """Positions of the `count` highest scores, the best first, then by row."""
    if len(rows) > count:  # everything that could be among them
        least = np.partition(scores, -count)[-count]
        near = np.flatnonzero(scores >= least)
    else:
        near = np.arange(len(rows))
    order = np.lexsort((rows[near], -scores[near]))
    best: npt.NDArray[np.int64] = near[order][:count]
    return best


def _pairs(rows: npt.NDArray[np.int64], scores: npt.NDArray[np.float32]) -> Found:
    return [(int(row), float(score)) for row, score in zip(rows, scores, strict=True)]


def _damaged(path: Path, embeddings: EmbeddingSet, why: str) -> UserError:
    return UserError(
        f"{path}: {why}; remove it and run `unclip data index {embeddings.root}` again, "
        "or search with --exact"
    )


def _first_line(error: RuntimeError) -> str:
    return one_line(error)[:200]
