"""Every real stage, at micro size: one curve on one process and two, whatever the engine."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import stages
import toy
from stages import ON_RANKS, STAGES, stage_config

from base.errors import UserError
from base.files import sha256_file
from trainer.checkpoint.export import read_weights
from trainer.loop import train
from trainer.metrics import read_metrics


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_dataset(tmp_path_factory.mktemp("stages") / "data", [20, 23], 64, dim=16)


@pytest.fixture(scope="module")
def folder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each stage on one process; FOLDER/clip is what prior and decoder read."""
    folder = tmp_path_factory.mktemp("runs")
    for name in STAGES:
        train(stage_config(name, data, folder, name))
        if name == "clip":
            claim_embeddings(data, folder / "clip")
    return folder


def claim_embeddings(data: Path, clip: Path) -> None:
    """Let the data set say that `clip` made its (random) embeddings."""
    info = json.loads((data / "dataset.json").read_text())
    weights = clip / "exports/open_clip/open_clip_model.safetensors"
    info["clip"]["weights_sha256"] = sha256_file(weights)
    (data / "dataset.json").write_text(json.dumps(info))


@pytest.fixture(scope="module")
def ranks(data: Path, folder: Path, torchrun: Callable[[int, Path, Sequence[object]], str]) -> Path:
    torchrun(2, Path(stages.__file__), [data, folder])
    return folder


def assert_same_curve(run: Path, other: Path) -> None:
    ours, theirs = read_metrics(run), read_metrics(other)
    assert len(ours) == len(theirs) == 4
    for a, b in zip(ours, theirs, strict=True):
        assert (a["loss"], a["grad_norm"]) == pytest.approx((b["loss"], b["grad_norm"]), rel=2e-4)
    weights = read_weights(other)
    for name, value in read_weights(run).items():
        assert (value - weights[name]).abs().max() < 1e-3, name


@pytest.mark.parametrize("name", ON_RANKS)
def test_two_ranks_give_the_curve_of_one(ranks: Path, name: str) -> None:
    assert_same_curve(ranks / f"{name}-ranks", ranks / name)


@pytest.mark.parametrize("name", STAGES)
def test_micro_batches_do_not_matter(data: Path, folder: Path, name: str) -> None:
    train(stage_config(name, data, folder, f"{name}-whole", "train.micro_batch=16"))
    assert_same_curve(folder / f"{name}-whole", folder / name)


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("zero", [0, 2])
def test_deepspeed_alone_gives_the_same(
    deepspeed_ready: None, data: Path, folder: Path, name: str, zero: int
) -> None:
    more = ["train.engine=deepspeed", f"train.zero_stage={zero}"]
    train(stage_config(name, data, folder, f"{name}-alone-{zero}", *more))
    assert_same_curve(folder / f"{name}-alone-{zero}", folder / name)


def test_a_clip_that_did_not_make_the_embeddings_is_refused(
    data: Path, folder: Path, tmp_path: Path
) -> None:
    other = toy.write_dataset(tmp_path / "other", [9], 64, dim=16)
    with pytest.raises(UserError, match=r"clip: .* is not the CLIP that embedded"):
        train(stage_config("prior", other, folder, "foreign"))


@pytest.mark.parametrize("name", STAGES)
def test_bf16_follows_fp32_roughly(data: Path, folder: Path, name: str) -> None:
    train(stage_config(name, data, folder, f"{name}-bf16", "train.precision=bf16"))
    ours, theirs = read_metrics(folder / f"{name}-bf16"), read_metrics(folder / name)
    for a, b in zip(ours, theirs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=0.05)
