"""The codec's fit in passes over blocks, against numpy and scipy on the whole matrix."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
import toy
from numpy.typing import NDArray
from test_catalogue import select

import trainer.pca as pca
from data_pipeline.schema import dataset as schema
from trainer.config import DataConfig
from trainer.loader.catalogue import Catalogue
from trainer.models.codec import Codec
from trainer.pca import Moments, Similarities, fit_codec

SIZES, DIM, KEPT = (7, 0, 9, 11, 5), 6, 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embeddings that vary more along some directions than along others."""
    root = toy.write_dataset(tmp_path_factory.mktemp("pca") / "a", SIZES, dim=DIM)
    mix = np.random.default_rng(1).standard_normal((DIM, DIM)) * np.array([9, 5, 3, 1, 0.4, 0.1])
    for path in (root / "img_emb").iterdir():
        rows = np.load(path).astype(np.float64) @ mix.T + 1
        np.save(path, (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16))
    return root


def whole(root: Path, kind: str = "img_emb") -> NDArray[np.float64]:
    return np.concatenate([np.load(p) for p in sorted((root / kind).iterdir())]).astype(np.float64)


def catalogue(*roots: Path, **more: Any) -> Catalogue:
    return Catalogue(DataConfig(paths=tuple(map(str, roots)), **more), 0)


def check(fit: pca.Fit, rows: NDArray[np.float64], text: NDArray[np.float64], buckets: int) -> None:
    """All that a fit tells, from the whole matrix by other means."""
    mean = rows.mean(axis=0)
    _, singular, vectors = scipy.linalg.svd(rows - mean, full_matrices=False)
    state = {name: value.double().numpy() for name, value in fit.state.items()}
    np.testing.assert_allclose(state["mean"], mean, atol=1e-6)
    np.testing.assert_allclose(np.abs(np.sum(state["axes"] * vectors[:KEPT], axis=1)), 1, atol=1e-5)
    variances = singular**2
    assert fit.left_out == pytest.approx(variances[KEPT:].sum() / variances.sum(), rel=1e-6)
    components = (rows - mean) @ state["axes"].T
    np.testing.assert_allclose(state["low"], components.min(axis=0), atol=1e-6)
    np.testing.assert_allclose(state["high"], components.max(axis=0), atol=1e-6)
    spans = components.max(axis=0) - components.min(axis=0)
    cells = ((components - components.min(axis=0)) / spans * buckets).clip(0, buckets - 1e-9)
    again = mean + ((cells // 1 + 0.5) / buckets * spans + components.min(axis=0)) @ state["axes"]
    error = ((again - rows) ** 2).sum() / variances.sum()
    assert fit.error == pytest.approx(error, rel=0.02)  # some are on the edge of a bucket
    dots = np.sort((rows * text).sum(axis=1))
    shares = np.searchsorted(dots, state["dot_edges"]) / len(dots)
    np.testing.assert_allclose(shares, np.arange(1, 4) / 4, atol=1 / len(dots))


@pytest.mark.parametrize("block", [4, 5, 4096])
def test_blocks_of_any_size_give_the_whole_matrix(
    data: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(pca, "_BLOCK", block)
    fit = fit_codec(Codec(DIM, KEPT, 32, 4), catalogue(data), None)
    assert fit.rows == sum(SIZES)
    check(fit, whole(data), whole(data, "text_emb"), 32)
    told = f"4 of 6 components of 32 embeddings: {100 * fit.left_out:.2f}% of their variance"
    assert str(fit).startswith(told)


@pytest.mark.parametrize("weights", [None, (1.0, 1.0)])
def test_several_datasets_are_one(data: Path, tmp_path: Path, weights: Any) -> None:
    other = toy.write_dataset(tmp_path / "b", [20], seed=2, dim=DIM)
    fit = fit_codec(Codec(DIM, KEPT, 8, 4), catalogue(data, other, weights=weights), None)
    rows, text = (
        np.concatenate([whole(data, kind), whole(other, kind)]) for kind in ("img_emb", "text_emb")
    )
    check(fit, rows, text, 8)


def test_a_selection_alone_is_fitted(tmp_path: Path) -> None:
    root = toy.write_dataset(tmp_path / "c", [12, 12], dim=DIM)
    rows = [0, 1, 5, 7, 11, 13, 14, 20, 22, 23]
    keys = [schema.sample_key(row // 12, row % 12) for row in rows]
    select(root, "some", keys)
    fit = fit_codec(Codec(DIM, KEPT, 8, 4), catalogue(root, selection="some"), None)
    assert fit.rows == len(rows)
    check(fit, whole(root)[rows], whole(root, "text_emb")[rows], 8)


def test_no_more_than_a_block_is_read_at_once_and_few_are_enough(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pca, "_BLOCK", 4)
    made = catalogue(data)
    shards, read = made.pools[0].shards, []
    embeddings = shards.embeddings

    def counted(samples: NDArray[np.int64]) -> Any:
        read.append(samples.tolist())
        return embeddings(samples)

    monkeypatch.setattr(shards, "embeddings", counted)
    fit = fit_codec(Codec(DIM, KEPT, 8, 4), made, 12)
    blocks = [[0, 1, 2, 3], [8, 9, 10, 11], [20, 21, 22, 23]]  # of eight
    assert read[:6] == blocks * 2
    assert max(map(len, read)) <= 4
    assert fit.rows == 12


def test_the_sign_of_a_direction_is_always_the_same() -> None:
    rows = np.random.default_rng(0).standard_normal((50, 5))
    found = []
    for sign in (1, -1):  # the covariance is the same, the rows are not
        moments = Moments(5)
        moments.add(sign * rows)
        found.append(moments.axes()[1])
    np.testing.assert_array_equal(found[0], found[1])
    largest = np.abs(found[0]).argmax(axis=1)
    assert (found[0][np.arange(5), largest] > 0).all()
    np.testing.assert_allclose(found[0] @ found[0].T, np.eye(5), atol=1e-12)


def test_similarities_are_parted_evenly() -> None:
    random = np.random.default_rng(0)
    image = random.standard_normal((20_000, 3))
    text = 0.3 * image + random.standard_normal((20_000, 3))
    image, text = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (image, text))
    similarities = Similarities()
    for first in range(0, 20_000, 3000):
        similarities.add(image[first : first + 3000], text[first : first + 3000])
    expected = np.quantile((image * text).sum(axis=1), np.arange(1, 16) / 16)
    np.testing.assert_allclose(similarities.edges(16), expected, atol=2e-4)


def test_data_that_do_not_vary_are_fitted_too(tmp_path: Path) -> None:
    """Fewer samples than components, all alike: no width is zero, and nothing is lost."""
    root = toy.write_dataset(tmp_path / "d", [3], dim=DIM)
    row = np.load(next((root / "img_emb").iterdir()))[:1]
    for path in (root / "img_emb").iterdir():
        np.save(path, row.repeat(3, axis=0))
    fit = fit_codec(Codec(DIM, KEPT, 8, 4), catalogue(root), None)
    made = Codec(DIM, KEPT, 8, 4)
    made.load_state_dict(fit.state)
    z = torch.from_numpy(row).float()
    torch.testing.assert_close(made.decode(made.encode(z)), z, atol=1e-5, rtol=0)
    assert np.isfinite([fit.left_out, fit.error]).all()
