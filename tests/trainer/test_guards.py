"""A loss that blows up: the run goes back, leaves data out, and remembers it."""

import json
import math
import shutil
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import toy
from test_resume import assert_equal_runs

import base.lease
from base.errors import Diverged, Stopped, UserError
from trainer import loop, saves
from trainer.checkpoint.read import resolve_checkpoint
from trainer.config import AnyTrainConfig
from trainer.engine.base import StepStats
from trainer.guards.spikes import robust_z
from trainer.loop import train
from trainer.metrics import read_metrics
from trainer.session import Session

BAD = list(range(60, 96))  # three steps of twelve samples
GUARDS = {"bad_steps": 3}
LENGTH = {"samples": 192, "checkpoint_every": 24, "log_every": 12}


def test_deviations_are_robust() -> None:
    losses = [1.0, 1.1, 0.9, 1.0, 1.2, 0.8, 50.0, 1.0]
    assert robust_z(losses, 1.0) == 0
    assert robust_z(losses, 1.1482602) == pytest.approx(1.0, rel=1e-4)
    assert robust_z(losses, 0.1) < 0
    assert robust_z([2.0] * 8, 2.1) > 1e3


@pytest.mark.parametrize("engine", ["local", "deepspeed"])
def test_a_run_of_bad_steps_goes_back_and_leaves_their_data_out(
    deepspeed_ready: None, dataset: Path, tmp_path: Path, engine: str
) -> None:
    """The weights are those of the checkpoint at 48: step 48 to 60 is undone as well."""
    how = {**LENGTH, "engine": engine, "samples": 96}
    poisoned = {"poison": BAD}
    run = tmp_path / "run"
    train(toy.toy_config(dataset, run, objective=poisoned, guards=GUARDS, train=how))
    state = resolve_checkpoint(run).state()
    assert [record._asdict() for record in state.rollbacks] == [{"at": 96, "to": 48}]
    assert (state.skipped, state.samples, state.steps) == ([(48, 96)], 96, 4)
    quiet = tmp_path / "quiet"
    train(toy.toy_config(dataset, quiet, train={**how, "samples": 48}))
    assert state.ema_updates == 4
    assert weights(run) == weights(quiet)


def weights(run: Path) -> bytes:
    return (resolve_checkpoint(run).folder / "slices/rank_00000.safetensors").read_bytes()


@pytest.mark.parametrize("stops", [[40], [62], [80], [100], [62, 100, 130]])
def test_interrupted_before_amid_and_after_it_the_run_ends_the_same(
    dataset: Path, tmp_path: Path, stops: list[int]
) -> None:
    sections: dict[str, Any] = {"guards": GUARDS, "train": {**LENGTH, "keep": 3}}
    whole = toy.toy_config(dataset, tmp_path / "whole", objective={"poison": BAD}, **sections)
    train(whole)
    assert len(resolve_checkpoint(tmp_path / "whole").state().rollbacks) == 1
    objective = {"poison": BAD, "stop_at": stops}
    config = toy.toy_config(dataset, tmp_path / "parts", objective=objective, **sections)
    for _ in stops:
        with pytest.raises(Stopped):
            train(config)
    train(config)
    assert_equal_runs(tmp_path / "parts", tmp_path / "whole")


def test_killed_after_it_the_run_does_not_forget_it(dataset: Path, tmp_path: Path) -> None:
    """All that a kill leaves is the checkpoint that going back wrote."""
    sections: dict[str, Any] = {"objective": {"poison": BAD}, "guards": GUARDS}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(toy.toy_config(dataset, whole, train={**LENGTH, "keep": 9}, **sections))
    shutil.copytree(whole, killed)
    for folder in (killed / "checkpoints").iterdir():
        if int(folder.name) > 96:
            shutil.rmtree(folder)
    result = train(toy.toy_config(dataset, killed, train=LENGTH, **sections))
    assert result.resumed_from == 96
    assert_equal_runs(killed, whole)


def test_a_spike_goes_back_too(dataset: Path, tmp_path: Path) -> None:
    config = toy.toy_config(
        dataset,
        tmp_path / "run",
        objective={"spikes": [130]},
        guards={"spike_z": 20.0, "spike_window": 8},
        train=LENGTH,
        optim={"lr": 1e-4},
    )
    train(config)
    state = resolve_checkpoint(tmp_path / "run").state()
    assert state.rollbacks == [(132, 120)]
    assert state.skipped == [(120, 132)]
    assert len(state.recent) == 8
    high = [line["samples"] for line in read_metrics(tmp_path / "run") if line["loss"] > 1]
    assert high == [132]  # it is seen all the same


def test_without_a_limit_no_spike_is_looked_for(dataset: Path, tmp_path: Path) -> None:
    config = toy.toy_config(dataset, tmp_path / "run", objective={"spikes": [130]}, train=LENGTH)
    assert train(config).skipped == 0
    assert resolve_checkpoint(tmp_path / "run").state().recent == []


def test_when_going_back_does_not_help_the_run_ends_with_a_report(
    dataset: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    config = toy.toy_config(
        dataset, run, objective={"poison_from": 60}, guards=GUARDS, train=LENGTH
    )
    with pytest.raises(Diverged, match=r"3 steps in a row, up to 132 samples.*report\.json"):
        train(config)
    report = json.loads((run / "report.json").read_text())
    assert report["samples"] == 132
    assert report["rollbacks"] == [{"at": 96, "to": 48}]
    assert report["skipped"] == [[48, 132]]
    steps = [(s["samples"], s["loss"], s["applied"]) for s in report["last_steps"][-2:]]
    assert steps == [(120, "nan", False), (132, "nan", False)]
    assert [(rank["rank"], rank["host"]) for rank in report["ranks"]] == [(0, socket.gethostname())]
    assert resolve_checkpoint(run).manifest.samples == 96


@pytest.mark.parametrize("how", ["to its end", "stopped", "killed when it was past"])
def test_a_report_goes_when_a_checkpoint_is_past_what_it_tells(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    run, guards = tmp_path / "run", {**GUARDS, "rollbacks": 0}
    bad = toy.toy_config(dataset, run, objective={"poison_from": 96}, guards=guards, train=LENGTH)
    with pytest.raises(Diverged):
        train(bad)
    report = run / "report.json"
    assert json.loads(report.read_text())["samples"] == 132

    def well(samples: int, stop_at: tuple[int, ...] = ()) -> AnyTrainConfig:
        length = {**LENGTH, "samples": samples}
        return toy.toy_config(dataset, run, objective={"stop_at": stop_at}, train=length)

    train(well(120))
    assert report.exists()
    if how == "stopped":
        with pytest.raises(Stopped):
            train(well(192, (132,)))
    elif how == "to its end":
        train(well(144))
    else:
        with monkeypatch.context() as patch:
            for module in (loop, saves):
                patch.setattr(module, "remove_old_report", lambda run, samples: None)
            train(well(144))
        assert report.exists()
        train(well(144))
    assert not report.exists()


def test_it_is_done_as_often_as_the_config_allows(dataset: Path, tmp_path: Path) -> None:
    bad = [*BAD, *range(108, 144)]
    run = tmp_path / "run"
    config = toy.toy_config(
        dataset, run, objective={"poison": bad}, guards={**GUARDS, "rollbacks": 1}, train=LENGTH
    )
    with pytest.raises(Diverged, match="up to 144 samples"):
        train(config)
    allowed = toy.toy_config(
        dataset, tmp_path / "two", objective={"poison": bad}, guards=GUARDS, train=LENGTH
    )
    assert train(allowed).skipped == math.fsum([96 - 48, 144 - 96])


def test_all_ranks_go_back_alike(
    dataset: Path, tmp_path: Path, torchrun: Callable[[int, Path, Sequence[object]], str]
) -> None:
    sections: dict[str, Any] = {"objective": {"poison": BAD}, "guards": GUARDS}
    sections["train"] = {**LENGTH, "engine": "deepspeed", "zero_stage": 2}
    path = toy.write_toy_config(tmp_path / "a.yaml", dataset, tmp_path / "run", **sections)
    torchrun(2, Path(toy.__file__), ["train", path])
    checkpoint = resolve_checkpoint(tmp_path / "run")
    assert checkpoint.manifest.world_size == 2
    assert checkpoint.state().rollbacks == [(96, 48)]
    assert checkpoint.state().skipped == [(48, 96)]


def test_a_run_that_lost_its_folder_writes_nothing_more(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process takes it between two steps, and every look is one after a long stop."""
    run = tmp_path / "run"
    lock = run / base.lease.NAME
    step = Session.step

    def slow(self: Session, *arguments: Any) -> StepStats:
        if self.state.samples == 48:
            lock.write_text(json.dumps({**json.loads(lock.read_text()), "token": "another's"}))
        return step(self, *arguments)

    monkeypatch.setattr(base.lease, "_LATE_SECONDS", -1.0)
    monkeypatch.setattr(Session, "step", slow)
    with pytest.raises(UserError, match="taken over by another process"):
        train(toy.toy_config(dataset, run, train=LENGTH))
    assert resolve_checkpoint(run).manifest.samples == 24  # that of 48 had only begun
    assert read_metrics(run)[-1]["samples"] == 48
