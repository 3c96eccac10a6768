"""Sweeps: which stages come of one, and as which jobs."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from base.errors import UserError
from slurm.cli import app
from slurm.config import PipelineConfig, PrepareStage, TrainStage
from slurm.launch import Pipeline
from slurm.sweep import sweep


def pipeline(out: str = "run") -> PipelineConfig:
    """data → clip, prior; the prior's RUN is needed by nobody."""
    clip = TrainStage(kind="train", config="clip.yaml", data=("stages.data",))
    prior = TrainStage(
        kind="train",
        config="prior.yaml",
        data=("stages.data",),
        clip="stages.clip",
        overrides=("optim.eps=1e-6",),
    )
    data = PrepareStage(kind="prepare", inputs=("pairs",))
    return PipelineConfig(out=out, stages={"data": data, "clip": clip, "prior": prior})


def test_every_combination_comes_once_after_what_it_needs() -> None:
    found, names = sweep(pipeline(), "prior", ["optim.lr=1e-4,3e-4", "seed=0,1"])
    assert names == [
        "prior.optim.lr=1e-4+seed=0",
        "prior.optim.lr=1e-4+seed=1",
        "prior.optim.lr=3e-4+seed=0",
        "prior.optim.lr=3e-4+seed=1",
    ]
    assert list(found.stages) == ["data", "clip", *names]
    last = found.stages[names[-1]]
    assert isinstance(last, TrainStage)
    assert last.overrides == ("optim.eps=1e-6", "optim.lr=3e-4", "seed=1")


def test_what_comes_after_the_stage_is_left_out() -> None:
    found, names = sweep(pipeline(), "clip", ["optim.lr=1e-4,3e-4"])
    assert list(found.stages) == ["data", *names]


@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True), max_size=3))
def test_there_are_as_many_variants_as_combinations(values: list[list[int]]) -> None:
    settings = [f"key{n}={','.join(map(str, each))}" for n, each in enumerate(values)]
    if not settings:
        return
    _, names = sweep(pipeline(), "prior", settings)
    expected = 1
    for each in values:
        expected *= len(each)
    assert len(set(names)) == len(names) == expected


def test_commas_within_brackets_part_nothing() -> None:
    found, names = sweep(pipeline(), "prior", ["optim.betas=[0.9,0.96],[0.9,0.99]"])
    assert names == ["prior.optim.betas=-0.9+0.96-", "prior.optim.betas=-0.9+0.99-"]
    stage = found.stages[names[0]]
    assert isinstance(stage, TrainStage)
    assert stage.overrides[-1] == "optim.betas=[0.9,0.96]"


@pytest.mark.parametrize(
    ("stage", "settings", "message"),
    [
        (None, ["optim.lr=1"], "say which stage with --stage: clip, prior"),
        ("data", ["optim.lr=1"], "--stage: got 'data', expected one of clip, prior"),
        ("prior", ["optim.lr"], "expected KEY=VALUE,VALUE"),
        ("prior", ["optim.lr=1,,2"], "expected KEY=VALUE,VALUE"),
        ("prior", ["optim.lr=1,1"], "two combinations are one folder"),
    ],
)
def test_mistakes_are_told(stage: str | None, settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sweep(pipeline(), stage, settings)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    for name in ("clip", "prior"):
        (tmp_path / f"{name}.yaml").write_text(f"stage: {name}\n")
    path = tmp_path / "pipeline.yaml"
    path.write_text(json.dumps(pipeline(str(tmp_path / "run")).model_dump(mode="json")))
    return path


def test_the_variants_are_one_array(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slurm.dry_run._cost", lambda node, asked, plan: None)
    monkeypatch.setattr("slurm.dry_run.check_configs", lambda nodes: None)
    words = [str(file), "--sweep", "optim.lr=1e-4,3e-4", "--stage", "prior", "--dry-run", "--json"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    stages: dict[str, Any] = {each["name"]: each for each in json.loads(result.stdout)["stages"]}
    first, second = stages["prior.optim.lr=1e-4"], stages["prior.optim.lr=3e-4"]
    assert second["script"] is None
    assert "#SBATCH --array=0-1%2\n" in first["script"]
    assert "#SBATCH --job-name=prior\n" in first["script"]
    assert "'afterok:<job of data>:<job of clip>'" in first["script"]
    runs = [str(file.parent / f"run/prior.optim.lr={value}") for value in ("1e-4", "3e-4")]
    assert f"runs=({runs[0]} {runs[1]})" in first["script"]
    assert Pipeline.read(file, [], ["seed=1"], "clip").swept == ["clip.seed=1"]


def test_a_stage_without_a_sweep_is_a_mistake(file: Path) -> None:
    with pytest.raises(UserError, match="--stage: is for --sweep"):
        CliRunner().invoke(app, [str(file), "--stage", "prior"], catch_exceptions=False)
