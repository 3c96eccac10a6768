"""The stage ar_prior as it is trained: fitted once, the same on every way to the end."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import stages
import torch
import toy
from equal import assert_equal_runs
from safetensors.torch import load_file, save_file

import trainer.pca as pca
from base.clip_reference import CONFIG_NAME, EXPORT, WEIGHTS_NAMES
from base.errors import Stopped, UserError
from base.files import sha256_file
from trainer.batch import Batch
from trainer.checkpoint.export import export, read_weights
from trainer.checkpoint.read import resolve_checkpoint
from trainer.config import AnyTrainConfig
from trainer.engine.open import open_engine
from trainer.loop import build_parts, train
from trainer.models.clip import Clip, describe_for_open_clip, weights_for_open_clip
from trainer.objectives.ar_prior import ArPriorObjective
from trainer.sampling.ar_prior import ArPart
from trainer.sampling.config import PriorPart
from trainer.sampling.parts import load_part, load_prior
from trainer.stages import load_train_config

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FOLDER/data, whose random embeddings FOLDER/clip of random weights says it made."""
    folder = tmp_path_factory.mktemp("ar")
    data = toy.write_dataset(folder / "data", [20, 23], 64, dim=16)
    config, home = load_train_config(stages.CONFIGS / "clip.yaml").model, folder / "clip" / EXPORT
    home.mkdir(parents=True)
    (home / CONFIG_NAME).write_text(json.dumps(describe_for_open_clip(config)))
    save_file(weights_for_open_clip(Clip(config).state_dict()), home / WEIGHTS_NAMES[0])
    info = json.loads((data / "dataset.json").read_text())
    info["clip"]["weights_sha256"] = sha256_file(home / WEIGHTS_NAMES[0])
    (data / "dataset.json").write_text(json.dumps(info))
    return folder


def config_of(folder: Path, out: Path, *more: str) -> AnyTrainConfig:
    own = (f"clip={folder / 'clip'}", "train.samples=48", "train.checkpoint_every=16", *more)
    return stages.stage_config("ar_prior", folder / "data", out.parent, out.name, *own)


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    train(config_of(folder, folder / "run"))
    return folder / "run"


def stop_at(monkeypatch: pytest.MonkeyPatch, position: int) -> None:
    """Let a run be asked to stop while it sees `position`; it takes one more step."""
    loss = ArPriorObjective.loss

    def stopping(self: Any, model: Any, batch: Batch, *rest: Any) -> torch.Tensor:
        if not batch.positions.is_meta and position in batch.positions:
            signal.raise_signal(signal.SIGTERM)
        return loss(self, model, batch, *rest)

    monkeypatch.setattr(ArPriorObjective, "loss", stopping)


def test_interrupted_is_uninterrupted_and_fitted_once(
    folder: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    config = config_of(folder, tmp_path / "parts")
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(Stopped):
            train(config)
    told = capsys.readouterr().err
    assert "8 of 16 components of 43 embeddings: " in told
    monkeypatch.setattr(pca, "Moments", None)  # it cannot be fitted again
    assert train(config).resumed_from == 32
    assert "components of" not in capsys.readouterr().err
    assert_equal_runs(tmp_path / "parts", run)
    manifest = resolve_checkpoint(run).manifest
    assert manifest.fixed["codec.axes"] == (8, 16)


def test_half_precision_leaves_the_codec_alone(run: Path) -> None:
    config = load_train_config(run / "config.yaml", ["train.precision=bf16"])
    model = build_parts(config, CPU).model
    before = {name: value.clone() for name, value in model.named_buffers()}
    module = open_engine(model, config.optim, config.train, CPU).module
    assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}
    for name, value in module.named_buffers():
        assert torch.equal(value, before[name])
        assert value.dtype == torch.float32


def test_weights_that_a_run_begins_with_bring_their_codec(
    folder: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pca, "Moments", None)
    train(config_of(folder, tmp_path / "tuned", f"init_from={run}", "train.samples=16"))
    ours, theirs = read_weights(tmp_path / "tuned"), read_weights(run)
    assert torch.equal(ours["codec.axes"], theirs["codec.axes"])
    assert not torch.equal(ours["logits_out.bias"], theirs["logits_out.bias"])


def test_one_file_holds_all_that_sampling_needs(run: Path, tmp_path: Path) -> None:
    exported = load_file(export(run, "ema", tmp_path / "ar.safetensors"))
    part = load_prior(PriorPart(run=str(run)), CPU, "bf16")
    assert isinstance(part, ArPart)
    for name, value in part.network.state_dict().items():
        assert torch.equal(value, exported[name].to(value.dtype)), name
    assert part.network.codec.axes.dtype == torch.float32
    assert part.network.logits_out.weight.dtype == torch.bfloat16
    with pytest.raises(UserError, match=r"prior\.run: .* of stage ar_prior, expected prior$"):
        load_part(PriorPart(run=str(run)), "prior", CPU, "fp32")
    with pytest.raises(UserError, match=r"of stage ar_prior, expected decoder$"):
        load_part(PriorPart(run=str(run)), "decoder", CPU, "fp32")


def test_what_cannot_be_read_is_told_on_all_ranks(folder: Path, tmp_path: Path) -> None:
    data = toy.write_dataset(tmp_path / "data", [5], 64, dim=16)
    info = json.loads((folder / "data" / "dataset.json").read_text())["clip"]
    record = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps({**record, "clip": info}))
    for path in (data / "img_emb").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="missing; make it with `unclip data embed`"):
        train(config_of(folder, tmp_path / "run", f"data.paths=[{data}]"))


def test_values_that_do_not_go_together_are_one_line(folder: Path, tmp_path: Path) -> None:
    wrong = {
        "model.components=17": "ar_prior: components: got 17, expected 1 to 16",
        "objective.drop_text=1.5": "ar_prior: drop_text: got 1.5, expected 0 to 1",
        "objective.fit_samples=0": "ar_prior: fit_samples: got 0, expected >= 1",
    }
    for setting, message in wrong.items():
        with pytest.raises(UserError, match=message):
            build_parts(config_of(folder, tmp_path / "run", setting), CPU)
