"""Embedding duplicates, against the cosines of all pairs; and with any number of threads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from base.errors import UserError
from data_pipeline.curate import embeddings
from data_pipeline.curate.config import CurateConfig, EmbeddingConfig
from data_pipeline.curate.duplicates import preferred
from data_pipeline.curate.embeddings import EmbeddingReader, embedding_leaders, greedy_cosine
from data_pipeline.curate.together import open_together
from data_pipeline.schema.dataset import img_emb_path

Rows16 = npt.NDArray[np.float16]


def brute_leaders(vectors: Rows16, bound: float) -> list[int]:
    wide = vectors.astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    leaders: list[int] = []
    for place in range(len(wide)):
        near = [b for b in range(place) if leaders[b] == b and wide[b] @ wide[place] > bound]
        leaders.append(near[0] if near else place)
    return leaders


def vectors_of(seed: int, count: int, dim: int = 16) -> Rows16:
    """Unit vectors around a few centres."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(max(1, count // 5), dim))
    rows = centres[random.integers(0, len(centres), count)] + random.normal(size=(count, dim)) * 0.2
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float16)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(0, 60), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_greedy_is_that_of_all_pairs(seed: int, count: int, bound: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embeddings, "_BLOCK", 4)
        patch.setattr(embeddings, "_EXACT_AT_ONCE", 3)
        vectors = vectors_of(seed, count)
        assert greedy_cosine(vectors, bound).tolist() == brute_leaders(vectors, bound)


def test_a_cosine_at_the_bound_itself_is_not_above_it() -> None:
    vectors = np.array([[1, 0], [0.6, 0.8]], np.float16)
    exact = float(embeddings._cosine(vectors[:1], vectors[1:])[0])
    assert greedy_cosine(vectors, exact).tolist() == [0, 1]
    assert greedy_cosine(vectors, exact - 1e-9).tolist() == [0, 0]


@pytest.mark.parametrize("name", [None, "second"])
@pytest.mark.parametrize("prefer", [False, True])
def test_of_a_dataset_s_rows_in_one_cluster(made: Path, name: str | None, prefer: bool) -> None:
    samples = open_together([made])
    values = np.random.default_rng(0).normal(size=samples.total) if prefer else None
    ordered = preferred(np.arange(1, samples.total, dtype=np.int64), values)
    vectors = np.concatenate(
        [np.load(img_emb_path(made, c.shard, name)) for c in samples.parts[0].commits if c.kept]
    )[ordered]
    for eps in (0.0001, 0.001, 0.01):
        config = EmbeddingConfig(eps=eps, set=name)
        expected = ordered[brute_leaders(vectors, 1 - eps)]
        assert embedding_leaders(samples, ordered, config).tolist() == expected.tolist()


def test_clusters_only_hide_duplicates_from_each_other(made: Path) -> None:
    samples = open_together([made])
    ordered = np.arange(samples.total, dtype=np.int64)
    vectors = EmbeddingReader(samples, None).read(ordered)
    found = embedding_leaders(samples, ordered, EmbeddingConfig(eps=0.001, clusters=5))
    assert (
        0 < (found != ordered).sum() <= (np.array(brute_leaders(vectors, 0.999)) != ordered).sum()
    )
    for row, leader in enumerate(found.tolist()):
        if row != leader:
            assert found[leader] == leader
            assert embeddings._cosine(vectors[[row]], vectors[[leader]])[0] > 0.999


def test_more_clusters_than_rows_are_refused(made: Path) -> None:
    samples = open_together([made])
    ordered = np.arange(samples.total, dtype=np.int64)
    with pytest.raises(UserError, match=r"clusters: got 41, expected at most 40"):
        embedding_leaders(samples, ordered, EmbeddingConfig(clusters=41))


def test_damaged_embeddings_are_told(dataset: Path) -> None:
    path = img_emb_path(dataset, 0)
    rows = np.load(path)
    rows[3] = np.nan
    np.save(path, rows)
    samples = open_together([dataset])
    with pytest.raises(UserError, match="zero or not finite"):
        embedding_leaders(samples, np.arange(samples.total), EmbeddingConfig())
    np.save(path, rows[:-1])
    with pytest.raises(UserError, match="expected float16"):
        embedding_leaders(samples, np.arange(samples.total), EmbeddingConfig())


_CLUSTERS = """
import json, sys
import numpy as np
if {torch_first}: import torch; torch.ones(300, 300) @ torch.ones(300, 300)
from data_pipeline.curate import embeddings
from data_pipeline.curate.config import EmbeddingConfig

class Reader:
    dim = 24
    random = np.random.default_rng(0)
    rows = random.normal(size=(6000, 24)).astype(np.float16)
    def read(self, rows): return self.rows[rows]

found = embeddings._clusters(Reader(), np.arange(6000), EmbeddingConfig(clusters=77, seed=3))
if not {torch_first}: import torch; torch.ones(300, 300) @ torch.ones(300, 300)
print(json.dumps(found.tolist()))
"""


def test_clusters_are_those_of_any_number_of_threads_and_get_along_with_torch() -> None:
    found = []
    for threads, torch_first in (("1", False), ("5", True)):
        done = subprocess.run(
            [sys.executable, "-c", _CLUSTERS.format(torch_first=torch_first)],
            env={**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout.splitlines()[-1]))
    assert len(set(found[0])) == 77
    assert found[0] == found[1]


def test_the_default_is_one_cluster_up_to_twenty_thousand_rows() -> None:
    assert embeddings._cluster_count(20_000) == 1
    assert embeddings._cluster_count(1_000_000) == 1000
    assert CurateConfig().embedding_duplicates is None
