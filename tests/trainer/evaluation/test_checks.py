"""A DATASET that does not fit, or that training has seen, is told before anything is drawn."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import toy

from base.errors import UserError
from base.files import sha256_file, write_json
from data_pipeline.schema.dataset import DATASET_FILE, ClipInfo, read_dataset
from trainer.evaluation.checks import rank_warning, require_fitting, trained_on
from trainer.loop import train
from trainer.sampling.config import CascadeConfig, DecoderPart, PriorPart

SIZES = (7, 9)


def cascade_of(clip: str, run: str = "absent") -> CascadeConfig:
    return CascadeConfig(clip=clip, prior=PriorPart(run=run), decoder=DecoderPart(run="absent"))


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A folder in open_clip's form; nobody opens it."""
    folder = tmp_path / "clip"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text("{}")
    (folder / "open_clip_model.safetensors").write_bytes(b"weights")
    return folder


def embedded_by(root: Path, sha256: str) -> Path:
    told = json.loads((root / DATASET_FILE).read_text())
    told["clip"]["weights_sha256"] = sha256
    write_json(root / DATASET_FILE, told)
    return root


def test_embeddings_of_another_clip(clip: Path, tmp_path: Path) -> None:
    own = sha256_file(clip / "open_clip_model.safetensors")
    root = embedded_by(toy.write_dataset(tmp_path / "data", SIZES), "5" * 64)
    with pytest.raises(UserError) as caught:
        require_fitting(cascade_of(str(clip)), root, read_dataset(root), None)
    line = str(caught.value)
    for told in (str(root), "another CLIP (weights 555555555555…)", f"({own[:12]}…)", "--as NAME"):
        assert told in line
    assert "\n" not in line
    embedded_by(root, own)
    require_fitting(cascade_of(str(clip)), root, read_dataset(root), None)


def test_no_embeddings_no_such_set_no_pictures(clip: Path, tmp_path: Path) -> None:
    root = toy.write_dataset(tmp_path / "data", SIZES)
    config, info = cascade_of(str(clip)), read_dataset(root)
    with pytest.raises(UserError, match="has no embeddings; make them with `unclip data embed`"):
        require_fitting(config, root, replace(info, clip=None), None)
    with pytest.raises(UserError, match="has no embeddings named 'second'"):
        require_fitting(config, root, info, "second")
    published = ClipInfo("ViT-L-14", "published:x", "", "", 8)
    with pytest.raises(UserError, match="has no pictures to compare with"):
        require_fitting(config, root, replace(info, clip=published), None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data` and a `run` that saw it."""
    place = tmp_path_factory.mktemp("trained")
    data = toy.write_dataset(place / "data", SIZES)
    train(toy.toy_config(data, place / "run", train={"samples": 24, "checkpoint_every": 24}))
    return place


def test_data_that_training_saw_wherever_they_lie_now(trained: Path, tmp_path: Path) -> None:
    config = cascade_of("absent", str(trained / "run"))
    moved = shutil.copytree(trained / "data", tmp_path / "moved")
    for root in (trained / "data", moved):
        assert trained_on(config, root, read_dataset(root)) == ["run"]
    other = toy.write_dataset(tmp_path / "other", SIZES, seed=1)
    assert trained_on(config, other, read_dataset(other)) == []


def test_embeddings_of_another_width_than_the_prior_s(trained: Path, tmp_path: Path) -> None:
    root = toy.write_dataset(tmp_path / "wide", SIZES, dim=12)
    config = cascade_of("absent", str(trained / "run"))
    with pytest.raises(UserError, match="its embeddings are 12 wide, expected 8 as the prior's"):
        require_fitting(config, root, read_dataset(root), None)


def test_too_few_pictures_for_a_covariance_are_told() -> None:
    assert rank_warning("fid", 2049, 2048) is None
    told = rank_warning("fid", 2048, 2048)
    assert told is not None
    assert told.startswith("fid: 2048 pictures for 2048 dimensions")
