"""Building an index: what is made, when it is made again, and that clip-retrieval serves it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from base.errors import UserError
from base.files import read_json, write_json
from data_pipeline.config import PrepareConfig
from data_pipeline.embed import embed
from data_pipeline.pipeline import prepare
from data_pipeline.search.autofaiss import memory_bytes
from data_pipeline.search.build import build
from data_pipeline.search.find import find
from data_pipeline.verify import verify

SMALL = PrepareConfig(image_size=64, samples_per_shard=10)
BACK_END_SECONDS = 180


@pytest.fixture(scope="module")
def plain(
    tmp_path_factory: pytest.TempPathFactory,
    pairs_folder: Callable[[Path, int], Path],
    ray_cluster: None,
) -> Path:
    """24 pictures in three shards, with two sets of embeddings and without an index."""
    place = tmp_path_factory.mktemp("index")
    prepare([pairs_folder(place / "in", 24)], place / "dataset", "random:0", SMALL)
    embed(place / "dataset", "random:1", "second")
    return place / "dataset"


@pytest.fixture
def dataset(plain: Path, tmp_path: Path) -> Path:
    """A copy to build in."""
    return Path(shutil.copytree(plain, tmp_path / "dataset"))


def pretended(place: Path, script: str) -> Path:
    """An environment whose autofaiss does what the script says."""
    program = place / "environment" / "bin" / "autofaiss"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return place / "environment"


def test_an_index_is_made_once_and_finds_what_a_full_search_finds(
    dataset: Path, retrieval_environment: Path
) -> None:
    record, is_new = build(dataset, environment=retrieval_environment)
    assert is_new
    assert (record.rows, record.kinds) == (24, {"image": "Flat", "text": "Flat"})
    names = {path.name for path in (dataset / "index").iterdir()}
    assert names == {
        "image.index",
        "text.index",
        "index.json",
        "indices_paths.json",
        "metadata",
    }
    assert verify(dataset).problems == ()
    indexed = find(dataset, "picture number 7", "random:0", count=6)
    exact = find(dataset, "picture number 7", "random:0", count=6, exact=True)
    assert (indexed.how, exact.how) == ("index", "exact")
    assert indexed.hits == exact.hits
    before = (dataset / "index" / "image.index").stat()
    assert build(dataset, environment=Path("/nowhere")) == (record, False)
    assert (dataset / "index" / "image.index").stat() == before
    assert not (dataset / ".work").exists()


def test_it_is_made_again_when_something_changed(
    dataset: Path, retrieval_environment: Path
) -> None:
    first, _ = build(dataset, environment=retrieval_environment)
    smaller, is_new = build(dataset, index_memory="1G", environment=retrieval_environment)
    assert is_new
    assert smaller.index_memory == "1G"
    (dataset / "index" / "text.index").write_bytes(b"cut")
    assert build(dataset, index_memory="1G", environment=retrieval_environment)[1]
    path = dataset / "img_emb" / "img_emb_00001.npy"
    rows = np.load(path)[::-1]
    np.save(path, rows)
    commit = read_json(dataset / "commits" / "00001.json")
    commit["files"]["img_emb/img_emb_00001.npy"]["sha256"] = "other"
    write_json(dataset / "commits" / "00001.json", commit)
    again, is_new = build(dataset, index_memory="1G", environment=retrieval_environment)
    assert is_new
    assert again.embeddings_fingerprint != first.embeddings_fingerprint


def test_a_further_set_has_an_index_of_its_own(dataset: Path, retrieval_environment: Path) -> None:
    build(dataset, "second", environment=retrieval_environment)
    folder = dataset / "index" / "embeddings" / "second"
    assert sorted(path.name for path in (folder / "metadata").iterdir()) == [
        f"metadata_{shard:05d}.parquet" for shard in range(3)
    ]
    assert read_json(folder / "index.json")["clip"]["pretrained"] == "random:1"
    assert find(dataset, "x", "random:1", name="second").how == "index"
    assert find(dataset, "x", "random:0").how == "exact"
    assert verify(dataset).whole


def test_without_the_environment_one_line_says_how_to_get_it(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"/none: has no autofaiss; run `make retrieval`"):
        build(dataset, environment=tmp_path / "none")
    assert not (dataset / "index").exists()
    assert verify(dataset).whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": "lots"}, "memory: got 'lots', expected a size"),
        ({"memory": "0G"}, "memory: got '0G'"),
        ({"index_memory": "16G"}, "index-memory: got 16G, expected at most 90 %"),
        ({"name": "third"}, "embeddings: got 'third', expected a further set .*: second"),
    ],
)
def test_mistakes_are_one_line(dataset: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(dataset, **options)  # type: ignore[arg-type]
    assert not (dataset / "index").exists()


def test_sizes() -> None:
    assert memory_bytes("4G", "x") == memory_bytes("4096mb", "x") == 4 * 1024**3
    assert memory_bytes("1.5K", "x") == 1536


def test_unfinished_embeddings_are_not_indexed(dataset: Path) -> None:
    (dataset / "embeddings" / "second" / "commits" / "00001.json").unlink()
    with pytest.raises(UserError, match=r"img_emb_00001.npy: not there yet.*--as second` again"):
        build(dataset, "second")


def test_too_little_memory_is_told_in_autofaiss_s_words(
    dataset: Path, retrieval_environment: Path
) -> None:
    with pytest.raises(UserError, match=r"made no index of .*img_emb: The current memory"):
        build(dataset, memory="1K", index_memory="0.5K", environment=retrieval_environment)
    assert verify(dataset).whole


def test_a_failure_leaves_the_earlier_index(dataset: Path, tmp_path: Path) -> None:
    (dataset / "index").mkdir()
    (dataset / "index" / "image.index").write_text("earlier")
    failing = pretended(tmp_path, 'echo "RuntimeError: it broke" >&2; exit 1')
    with pytest.raises(UserError, match=r"made no index of .*: RuntimeError: it broke"):
        build(dataset, environment=failing)
    assert (dataset / "index" / "image.index").read_text() == "earlier"
    assert not (dataset / ".work").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_stop_ends_autofaiss_too(
    dataset: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    waiting = pretended(tmp_path, f'echo $$ > "{tmp_path}/pid"\nexec sleep 600')
    command = [sys.executable, "-m", "data_pipeline", "index", dataset, "--environment", waiting]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text() != "")
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == code, told
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert not (dataset / ".work").exists()
    assert verify(dataset).whole


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + BACK_END_SECONDS
    while not holds():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def named(
    tmp_path_factory: pytest.TempPathFactory,
    pairs_folder: Callable[[Path, int], Path],
    retrieval_environment: Path,
    ray_cluster: None,
) -> tuple[Path, Path]:
    """A DATASET with its index, and the weights of its CLIP, which is one that open_clip names."""
    import open_clip
    import torch

    place = tmp_path_factory.mktemp("named")
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-S-32-alt")
    torch.save(model.state_dict(), place / "weights.pt")
    clip = f"ViT-S-32-alt:{place / 'weights.pt'}"
    prepare([pairs_folder(place / "in", 24)], place / "dataset", clip, SMALL)
    build(place / "dataset", environment=retrieval_environment)
    return place / "dataset", place / "weights.pt"


@pytest.fixture
def back_end(
    named: tuple[Path, Path], retrieval_environment: Path, tmp_path: Path
) -> Iterator[str]:
    """The address of clip-retrieval's back end, started as the page on data says."""
    dataset, weights = named
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [retrieval_environment / "bin" / "clip-retrieval", "back", "--port", str(port)]
    command += ["--clip_model", f"open_clip:ViT-S-32-alt/{weights}"]
    surroundings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=dataset / "index", env=surroundings, stdout=log, stderr=log
        )
    try:
        here = f"http://127.0.0.1:{port}"
        wait_until(lambda: process.poll() is not None or answers(port))
        assert process.poll() is None, (tmp_path / "log").read_text()
        yield here
    finally:
        process.terminate()
        process.wait(30)


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def ask(address: str, **question: object) -> Any:
    request = urllib.request.Request(address, json.dumps(question).encode())
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_clip_retrieval_serves_the_same_folder(named: tuple[Path, Path], back_end: str) -> None:
    dataset, weights = named
    with urllib.request.urlopen(f"{back_end}/indices-list", timeout=60) as answer:
        assert json.load(answer) == ["dataset"]
    question = {"modality": "image", "num_images": 5, "indice_name": "dataset"}
    ours = find(dataset, "picture number 3", f"ViT-S-32-alt:{weights}", count=5)
    theirs = ask(f"{back_end}/knn-service", text="picture number 3", **question)
    assert ours.how == "index"
    assert [hit["key"] for hit in theirs] == [hit.key for hit in ours.hits]
    assert [hit["caption"] for hit in theirs] == [hit.caption for hit in ours.hits]
    scores = [hit.score for hit in ours.hits]
    assert [hit["similarity"] for hit in theirs] == pytest.approx(scores, abs=1e-4)
    row = np.load(dataset / "text_emb" / "text_emb_00001.npy")[4].astype(float).tolist()
    question["modality"] = "text"
    (nearest, *_) = ask(f"{back_end}/knn-service", embedding_input=row, **question)
    assert (nearest["key"], nearest["id"]) == ("000010004", 14)
