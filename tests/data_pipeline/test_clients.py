"""A DATASET as those read it who never heard of us: the clients that people have."""

import subprocess
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_pipeline.config import PrepareConfig
from data_pipeline.pipeline import prepare

pytestmark = pytest.mark.usefixtures("ray_cluster")
COUNT, BROKEN = 90, range(40, 60)  # the rows of the third shard


@pytest.fixture(scope="module")
def dataset(
    tmp_path_factory: pytest.TempPathFactory,
    pairs_folder: Callable[[Path, int], Path],
    ray_cluster: None,
) -> Path:
    """Five shards, of which one kept nothing; every third picture has two captions."""
    place = tmp_path_factory.mktemp("clients")
    folder = pairs_folder(place / "in", COUNT)
    for i in range(0, COUNT, 3):
        (folder / f"{i:05d}.txt").write_text(f"picture number {i}\nand once more: {i}")
    for i in BROKEN:
        (folder / f"{i:05d}.jpg").write_bytes(b"broken")
    config = PrepareConfig(image_size=64, samples_per_shard=20)
    info = prepare([folder], place / "dataset", "random:1", config)
    assert (info.kept, info.rejected, info.shards) == (70, 20, 5)
    return place / "dataset"


@pytest.fixture(scope="module")
def rows(dataset: Path) -> list[dict[str, Any]]:
    """The metadata of all samples."""
    found: list[dict[str, Any]] = pq.read_table(dataset / "metadata").to_pylist()
    return found


@pytest.fixture(scope="module")
def embeddings(dataset: Path) -> npt.NDArray[np.float16]:
    """The picture embeddings of all samples, in the order of their files."""
    paths = sorted((dataset / "img_emb").iterdir())
    return np.concatenate([np.load(path) for path in paths])


def tars(dataset: Path) -> list[str]:
    return sorted(str(path) for path in (dataset / "shards").glob("*.tar"))


def test_webdataset(dataset: Path, rows: list[dict[str, Any]]) -> None:
    import webdataset

    samples = list(webdataset.WebDataset(tars(dataset), shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in samples] == [row["key"] for row in rows]
    for sample, row in zip(samples, rows, strict=True):
        assert sample["txt"] == row["caption"]
        assert sample["json"]["captions"] == row["captions"]
        assert sample["jpg"].shape == (64, 64, 3)
        assert str(imagehash.phash(Image.fromarray(sample["jpg"]))) == row["phash"]


def test_open_clip(
    dataset: Path, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from open_clip_train import data as open_clip

    shards = "::".join(tars(dataset))
    assert open_clip.get_dataset_size(shards) == (70, 4)
    settings = Namespace(
        train_data=shards,
        val_data=shards,
        train_num_samples=None,  # it finds sizes.json
        val_num_samples=None,
        train_data_upsampling_factors=None,
        batch_size=7,
        workers=0,
        world_size=1,
        seed=0,
    )
    # Its training loader expects what webdataset gave up to 0.2.86: no marks between tars.
    without_marks = partial(open_clip.tar_file_expander, eof_value=None)
    monkeypatch.setattr(open_clip, "tar_file_expander", without_marks)
    for is_train in (True, False):
        loader = open_clip.get_wds_dataset(
            settings, np.asarray, is_train=is_train, tokenizer=lambda text: [text]
        ).dataloader
        assert loader.num_samples == (70 if is_train else 0)
        batches = list(loader)
        assert all(np.asarray(images).shape == (7, 64, 64, 3) for images, _ in batches)
        captions = [caption for _, texts in batches for caption in texts]
        assert sorted(captions) == sorted(row["caption"] for row in rows)


@pytest.mark.parametrize("streaming", [False, True])
def test_hugging_face_datasets(
    dataset: Path,
    rows: list[dict[str, Any]],
    streaming: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    read = datasets.load_dataset(
        "webdataset",
        data_files={"train": tars(dataset)},
        split="train",
        streaming=streaming,
        cache_dir=str(tmp_path),
    )
    samples = list(read)
    assert [sample["__key__"] for sample in samples] == [row["key"] for row in rows]
    for sample, row in zip(samples, rows, strict=True):
        assert (sample["txt"], sample["json"]["captions"]) == (row["caption"], row["captions"])
        assert str(imagehash.phash(sample["jpg"])) == row["phash"]


def test_embedding_reader(
    dataset: Path, rows: list[dict[str, Any]], embeddings: npt.NDArray[np.float16]
) -> None:
    from embedding_reader import EmbeddingReader

    reader = EmbeddingReader(
        embeddings_folder=str(dataset / "img_emb"),
        metadata_folder=str(dataset / "metadata"),
        meta_columns=["key", "caption"],
        file_format="parquet_npy",
    )
    assert (reader.count, reader.dimension) == (70, 32)
    batches = list(reader(batch_size=50, show_progress=False))
    assert (np.concatenate([batch[0] for batch in batches]) == embeddings).all()
    keys = [key for batch in batches for key in batch[1]["key"]]
    assert keys == [row["key"] for row in rows]


def test_autofaiss(
    dataset: Path,
    embeddings: npt.NDArray[np.float16],
    retrieval_environment: Path,
    tmp_path: Path,
) -> None:
    import faiss

    command = [
        str(retrieval_environment / "bin" / "autofaiss"),
        "build_index",
        f"--embeddings={dataset / 'img_emb'}",
        f"--index_path={tmp_path / 'knn.index'}",
        f"--index_infos_path={tmp_path / 'knn.json'}",
        "--max_index_memory_usage=100M",
        "--current_memory_available=1G",
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    index = faiss.read_index(str(tmp_path / "knn.index"))
    _, nearest = index.search(embeddings.astype(np.float32), 1)
    assert nearest[:, 0].tolist() == list(range(70))


def test_the_rules_of_dalle2_pytorch(
    dataset: Path, embeddings: npt.NDArray[np.float16], rows: list[dict[str, Any]]
) -> None:
    """Its decoder's loader finds a sample's embedding by names alone; here as it does.

    A tar's basename is the number of its shard; the folder of embeddings holds nothing but
    PREFIX_<shard>.npy, all with as many digits; the last four digits of a key are the row there; a
    row of zeros means that there is no embedding.
    """
    import webdataset

    files = list((dataset / "img_emb").iterdir())
    by_shard = {int(path.stem.split("_")[-1]): np.load(path) for path in files}
    assert {path.name.rsplit("_", 1)[0] for path in files} == {"img_emb"}
    assert len({len(path.name) for path in files}) == 1
    found = []
    for sample in webdataset.WebDataset(tars(dataset), shardshuffle=False):
        shard = int(Path(sample["__url__"]).name.split(".")[0])
        found.append(by_shard[shard][int(sample["__key__"][-4:])])
    assert len(found) == len(rows)
    assert (np.stack(found) == embeddings).all()
    assert np.count_nonzero(found, axis=1).all()
