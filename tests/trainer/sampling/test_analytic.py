"""The scores of a run: measured on its data, kept in it, and those of the weights drawn with."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from stages import stage_config
from typer.testing import CliRunner

from base.errors import UserError
from trainer.cli import app
from trainer.diffusion.process import Diffusion, DiffusionConfig
from trainer.loop import train
from trainer.rng import SampleRandom
from trainer.sampling.analytic import RECORD, Scores, measure_scores
from trainer.sampling.config import PartConfig
from trainer.sampling.drawing import upsample
from trainer.sampling.parts import load_part

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An upsampler, which needs no CLIP, after one step."""
    folder = tmp_path_factory.mktemp("analytic")
    data = toy.write_dataset(folder / "data", [24], 64, dim=16)
    few = ["train.samples=16", "train.pictures=0"]
    train(stage_config("up64", data, folder, "up64", *few))
    return folder / "up64"


@pytest.fixture
def run(trained: Path) -> Path:
    shutil.rmtree(trained / "exports", ignore_errors=True)
    return trained


def part(run: Path, **more: Any) -> PartConfig:
    return PartConfig(run=str(run), sampler="analytic", steps=3, **more)


def test_measured_and_drawn_with(run: Path) -> None:
    found = measure_scores(run, 70, 5)
    kept = json.loads((run / RECORD).read_text())
    assert kept["checkpoint"] == "000000000016"
    assert (kept["weights"], kept["samples"]) == ("ema", 70)
    assert list(kept["gamma"]) == ["999", "749", "500", "250", "0"]
    means = {t: (1 - float(NOISE.alphas[t])) * gamma for t, gamma in found.gamma.items()}
    assert all(mean > 0 for mean in means.values())
    loaded = load_part(part(run), "upsampler", CPU, "fp32")
    assert loaded.scores == found
    picture = upsample(loaded, torch.zeros(2, 3, 8, 8), SampleRandom(0, torch.arange(2)), "up")
    assert picture.isfinite().all()


NOISE = Diffusion(DiffusionConfig())


def test_the_command_measures(run: Path) -> None:
    arguments = ["checkpoint", "analytic", str(run), "--samples", "2", "--steps", "2"]
    done = CliRunner().invoke(app, [*arguments, "--weights", "raw"], catch_exceptions=False)
    assert done.stdout == f"{run / RECORD}: 2 timesteps, 2 samples\n"
    again = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert json.loads(again.stdout)["weights"] == "ema"


def test_scores_that_are_missing_or_of_other_weights_are_told_with_the_command(run: Path) -> None:
    with pytest.raises(UserError, match=r"analytic needs .* `unclip checkpoint analytic \S*up64` "):
        load_part(part(run), "upsampler", CPU, "fp32")
    measure_scores(run, 2, 2)
    with pytest.raises(
        UserError, match=r"is of ema at 0*16, expected raw at .*up64 --weights raw`"
    ):
        load_part(part(run, weights="raw"), "upsampler", CPU, "fp32")
    for wrong in ("[]", "{}", '{"gamma": {"x": 1}}', '{"gamma": 3}'):
        (run / RECORD).write_text(wrong)
        with pytest.raises(UserError, match="not what `unclip checkpoint analytic` writes"):
            load_part(part(run), "upsampler", CPU, "fp32")


def test_a_stage_without_diffusion_has_no_scores(tmp_path: Path) -> None:
    micro = Path(__file__).parents[3] / "configs" / "micro" / "clip.yaml"
    (tmp_path / "config.yaml").write_text(micro.read_text())
    with pytest.raises(UserError, match="a run of stage clip, which diffuses nothing"):
        measure_scores(tmp_path, 2, 2)


def test_between_timesteps_the_mean_of_the_noise_is_on_a_line() -> None:
    alphas = NOISE.alphas.tolist()
    exact = {t: 1 / (alphas[t] * 0.09 + 1 - alphas[t]) for t in range(1000)}
    grid = [round(i * 999 / 63) for i in range(64)]
    scores = Scores("0", "ema", 9, {t: exact[t] for t in grid})
    found = scores.at(range(1000), NOISE)
    assert all(found[t] == pytest.approx(exact[t]) for t in grid)
    assert all(found[t] == pytest.approx(exact[t], rel=0.1) for t in range(16, 1000))
