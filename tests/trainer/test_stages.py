"""Every real stage, at micro size: one curve on one process and two, whatever the engine."""

import io
import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import stages
import torch
import toy
from equal import assert_equal_runs
from PIL import Image
from processes import RankServer
from stages import ON_RANKS, STAGES, claim_embeddings, stage_config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from base.errors import UserError
from base.files import sha256_file
from data_pipeline.schema.dataset import read_dataset
from trainer.batch import Needs
from trainer.builders import load_encoders
from trainer.checkpoint.export import read_weights
from trainer.loader.samples import SampleReader
from trainer.loop import train
from trainer.metrics import read_metrics
from trainer.record import require_fitting_data

pytestmark = pytest.mark.slow
DRAWN = {"decoder": (2, 16), "up64": (3, 64)}  # of which progress is drawn: rows, and their height


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_dataset(tmp_path_factory.mktemp("stages") / "data", [20, 23], 64, dim=16)


@pytest.fixture(scope="module")
def folder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each stage on one process; FOLDER/clip is what prior and decoder read."""
    folder = tmp_path_factory.mktemp("runs")
    for name in STAGES:
        drawn = ["train.pictures=8"] if name in DRAWN else []
        train(stage_config(name, data, folder, name, *drawn))
        if name == "clip":
            claim_embeddings(data, folder / "clip")
    return folder


@pytest.fixture(scope="module")
def ranks(data: Path, folder: Path, deepspeed_ready: None, rank_server: RankServer) -> Path:
    rank_server.run(2, Path(stages.__file__), [data, folder], imports=["open_clip"])
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


@pytest.mark.parametrize("name", ON_RANKS)
def test_two_ranks_of_which_one_is_asked_to_stop_end_the_same(ranks: Path, name: str) -> None:
    """Bit for bit, with ZeRO: weights, moments, averages, counters and metrics."""
    assert_equal_runs(ranks / f"{name}-stopped", ranks / f"{name}-ranks")


@pytest.mark.parametrize("name", ON_RANKS)
def test_damage_costs_two_ranks_a_checkpoint_and_no_bit(ranks: Path, name: str) -> None:
    """One seeded case each; every file and kind of damage: test_damage.py."""
    told = json.loads((ranks / "damage.json").read_text())[name]
    assert told["resumed"] == [32, 32], told
    assert "warning: checkpoint 000000000064 is damaged and passed over: " in told["said"]
    assert told["file"] in told["said"]
    assert_equal_runs(ranks / f"{name}-damaged", ranks / f"{name}-ranks")


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


def test_published_embeddings_are_taken_at_their_word(data: Path, folder: Path) -> None:
    config, info = stage_config("prior", data, folder, "published"), read_dataset(data)
    assert info.clip is not None
    for digest, refused in (("", False), ("0" * 64, True)):
        other = replace(info, clip=replace(info.clip, weights_sha256=digest))
        with pytest.raises(UserError, match="is not the CLIP") if refused else nullcontext():
            require_fitting_data(config, Needs(embeddings=True), [other])


@pytest.mark.parametrize("name", STAGES)
def test_bf16_follows_fp32_roughly(data: Path, folder: Path, name: str) -> None:
    train(stage_config(name, data, folder, f"{name}-bf16", "train.precision=bf16"))
    ours, theirs = read_metrics(folder / f"{name}-bf16"), read_metrics(folder / name)
    for a, b in zip(ours, theirs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=0.05)


@pytest.mark.parametrize("name", DRAWN)
def test_progress_is_drawn_at_checkpoints(data: Path, folder: Path, name: str) -> None:
    """Eight columns of training samples, the truth below; TensorBoard shows the same picture."""
    rows, side = DRAWN[name]
    picture = Image.open(folder / name / "samples/000000000064.png")
    pixels = np.asarray(picture)  # [H, W, 3]
    assert picture.size == (8 * (side + 2) + 2, rows * (side + 2) + 2)
    shown = EventAccumulator(str(folder / name / "tensorboard")).Reload().Images("pictures")
    assert shown[-1].step == 64
    assert np.array_equal(
        np.asarray(Image.open(io.BytesIO(shown[-1].encoded_image_string))), pixels
    )
    config = stage_config(name, data, folder, name)
    reader = SampleReader(config.data, Needs(image_size=side), config.seed)
    for column, true in enumerate(reader.batch(np.arange(8)).image):
        top, left = 2 + (rows - 1) * (side + 2), 2 + column * (side + 2)
        place = pixels[top : top + side, left : left + side]
        assert np.array_equal(place, true.permute(1, 2, 0).numpy())
        assert len(np.unique(place)) > 1


@pytest.mark.parametrize("name", ["clip", "prior"])
def test_stages_without_pictures_draw_none(folder: Path, name: str) -> None:
    assert not (folder / name / "samples").exists()


def test_looking_at_the_progress_does_not_change_the_run(data: Path, folder: Path) -> None:
    more = ["train.checkpoint_every=16", "train.keep=4"]
    for run, pictures in (("watched", 3), ("blind", 0)):
        config = stage_config("decoder", data, folder, run, *more, f"train.pictures={pictures}")
        train(config)
    assert len(list((folder / "watched/samples").glob("*.png"))) == 4
    assert not (folder / "blind/samples").exists()
    for slices in (folder / "blind").rglob("*.safetensors"):
        watched = folder / "watched" / slices.relative_to(folder / "blind")
        assert sha256_file(watched) == sha256_file(slices)
    assert_same_curve(folder / "watched", folder / "blind")


def test_a_clip_that_was_trained_further_is_exported_anew(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "clip"
    train(stage_config("clip", data, tmp_path, "clip", "train.samples=32"))
    weights = run / "exports/open_clip/open_clip_model.safetensors"
    first, written = sha256_file(weights), weights.stat().st_mtime_ns
    train(stage_config("clip", data, tmp_path, "clip", "train.samples=32"))
    assert weights.stat().st_mtime_ns == written  # nothing has changed
    train(stage_config("clip", data, tmp_path, "clip", "train.samples=64"))
    assert sha256_file(weights) != first
    exported = load_encoders(str(run))[1].module.state_dict()
    for name, value in read_weights(run, "ema").items():
        assert torch.equal(exported[name.removeprefix("clip.")], value), name
