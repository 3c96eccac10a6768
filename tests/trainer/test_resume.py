"""Interrupted = uninterrupted, bit for bit, on the same number of processes."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import toy
import yaml
from equal import assert_equal_runs, without_times

from base.errors import Diverged, Stopped, UserError
from data_pipeline.schema import dataset as schema
from trainer.checkpoint.manifest import LATEST
from trainer.checkpoint.read import resolve_checkpoint
from trainer.loop import train
from trainer.metrics import read_metrics
from trainer.sampling.progress import ProgressPictures
from trainer.stages import STAGES

ENGINES: list[dict[str, Any]] = [
    {"engine": "local"},
    {"engine": "local", "precision": "bf16"},
    *({"engine": "deepspeed", "zero_stage": zero} for zero in range(4)),
    {"engine": "deepspeed", "zero_stage": 2, "precision": "bf16"},
]


@pytest.mark.parametrize("how", ENGINES, ids=lambda how: "-".join(map(str, how.values())))
def test_three_sessions_equal_one(
    deepspeed_ready: None, dataset: Path, tmp_path: Path, how: dict[str, Any]
) -> None:
    """Cut between lines of metrics and inside an epoch; pictures, crops and tokens included."""
    averages = {"powers": [0.05, 0.1]}
    sections = {"optim": {"schedule": "cosine"}, "train": how, "ema": averages}
    plain = {"pictures": True}
    train(toy.toy_config(dataset, tmp_path / "whole", objective=plain, **sections))
    stopping = {**plain, "stop_at": [20, 44]}
    config = toy.toy_config(dataset, tmp_path / "parts", objective=stopping, **sections)
    stopped_at = []
    for _ in "ab":
        with pytest.raises(Stopped, match="the same command goes on"):
            train(config)
        stopped_at.append(resolve_checkpoint(tmp_path / "parts").manifest.samples)
    assert stopped_at == [36, 60]
    assert train(config).resumed_from == 60
    assert_equal_runs(tmp_path / "parts", tmp_path / "whole")
    assert "ema_0.100" in resolve_checkpoint(tmp_path / "parts").manifest.kinds
    assert resolve_checkpoint(tmp_path / "parts").state().ema_updates == 8


def test_a_finished_run_is_left_alone(dataset: Path, tmp_path: Path) -> None:
    config = toy.toy_config(dataset, tmp_path / "run")
    first = train(config)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    again = train(config)
    assert (again.samples, again.steps, again.seconds) == (first.samples, 8, first.seconds)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_finished_run_tells_what_of_a_changed_config_it_has_no_use_for(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And its config.yaml stays what it was trained with; one of an older version lacks keys."""
    run = tmp_path / "run"
    config = toy.toy_config(dataset, run, train={"samples": 48})
    train(config)
    record = run / "config.yaml"
    values = yaml.safe_load(record.read_text())
    del values["train"]["channels_last"], values["guards"]
    record.write_text(yaml.dump(values))
    train(config)
    assert "warning" not in capsys.readouterr().err
    changed = {"optim": {"lr": 0.5}, "train": {"samples": 36, "keep": 3}, "ema": {"powers": [0.1]}}
    assert train(toy.toy_config(dataset, run, **changed)).samples == 48
    told = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    end = f"; the run in {run} is complete, choose another `out` for another"
    assert told == [
        f"warning: optim.lr: got 0.5, but it was trained with 0.01{end}",
        f"warning: train.samples: got 36, but it was trained with 48{end}",
        f"warning: train.keep: got 3, but it was trained with 2{end}",
        f"warning: ema.powers: got [0.1], but it was trained with []{end}",
    ]
    assert yaml.safe_load(record.read_text()) == values


def test_a_stop_during_the_last_step_is_not_forgotten(dataset: Path, tmp_path: Path) -> None:
    """The run is complete and saved; whoever began it hears of the request all the same."""
    config = toy.toy_config(dataset, tmp_path / "run", objective={"stop_at": [90]})
    with pytest.raises(Stopped):
        train(config)
    assert resolve_checkpoint(tmp_path / "run").manifest.samples == 96
    assert train(config).resumed_from == 96


def test_what_is_done_last_happens_whenever_a_run_is_found_complete(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = []
    stage = dataclasses.replace(
        STAGES["toy"], finish=lambda run, config: finished.append((run, config.stage))
    )
    config = toy.toy_config(dataset, tmp_path / "run")
    monkeypatch.setitem(STAGES, "toy", stage)
    train(config)
    train(config)
    assert finished == [(tmp_path / "run", "toy")] * 2


def test_metrics_after_the_checkpoint_are_cut(dataset: Path, tmp_path: Path) -> None:
    """Killed after more lines than the checkpoint covers, in the middle of one."""
    train(toy.toy_config(dataset, tmp_path / "whole"))
    run = tmp_path / "run"
    train(toy.toy_config(dataset, run, train={"samples": 48}))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"samples": 72, "loss": 9.0}) + '\n{"samples": 9')
    train(toy.toy_config(dataset, run))
    assert without_times(run) == without_times(tmp_path / "whole")


@pytest.mark.parametrize("damage", [b"[4]\n", b"{\xff}\n", b"\x00\x00\n", b'{"loss": 1}\n'])
def test_damaged_metrics_cost_the_damaged_lines_and_nothing_else(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: bytes
) -> None:
    run = tmp_path / "run"
    train(toy.toy_config(dataset, run, train={"samples": 48}))
    _, second = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(damage + second + damage)
    assert [line["samples"] for line in read_metrics(run)] == [48]
    capsys.readouterr()
    train(toy.toy_config(dataset, run))
    assert [line["samples"] for line in read_metrics(run)] == [48, 72, 96]
    assert f"warning: {run}/metrics.jsonl: 2 damaged lines are left out" in capsys.readouterr().err


def test_a_picture_that_cannot_be_drawn_does_not_end_the_run(
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def draw(pictures: ProgressPictures, samples: int) -> None:
        raise torch.OutOfMemoryError("no room for\nthe model")

    monkeypatch.setattr(ProgressPictures, "draw", draw)
    assert train(toy.toy_config(dataset, tmp_path / "run")).samples == 96
    told = capsys.readouterr().err
    assert "warning: no picture of 48 samples: no room for the model\n" in told
    assert "warning: no picture of 96 samples: no room for the model\n" in told


def test_a_checkpoint_that_was_due_amid_bad_steps_is_made_up_for(
    dataset: Path, tmp_path: Path
) -> None:
    """The step that crosses 48, and the one after it, change nothing."""
    config = toy.toy_config(dataset, tmp_path / "run", objective={"poison": [40, 50]})
    train(config)
    folders = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert folders == ["000000000072", "000000000096"]


def test_what_was_learned_is_saved_before_unreadable_data_end_a_run(
    dataset: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(dataset, tmp_path / "data")
    metadata = pq.read_table(schema.metadata_path(data, 0))
    offset = metadata["jpg_offset"][3].as_py()
    with schema.tar_path(data, 0).open("r+b") as file:
        file.seek(offset)
        file.write(bytes(100))
    config = toy.toy_config(data, tmp_path / "run", objective={"pictures": True})
    named = r"00000\.tar: 000000003\.jpg: not a readable JPEG .*; verify the data"
    with pytest.raises(UserError, match=named):
        train(config)
    stopped = resolve_checkpoint(tmp_path / "run").manifest.samples
    assert 0 < stopped < 48
    shutil.copy(schema.tar_path(dataset, 0), schema.tar_path(data, 0))  # as `data prepare` would
    assert train(config).resumed_from == stopped
    plain = toy.toy_config(data, tmp_path / "whole", objective={"pictures": True})
    train(plain)
    assert_equal_runs(tmp_path / "run", tmp_path / "whole")


def test_a_run_says_whether_it_begins_or_goes_on(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train(toy.toy_config(dataset, run, train={"samples": 48}))
    assert f"{run}: begins\n" in capsys.readouterr().err
    train(toy.toy_config(dataset, run))
    assert f"{run}: goes on at 48 samples\n" in capsys.readouterr().err


def test_damage_is_named_and_the_checkpoint_before_is_taken(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(toy.toy_config(dataset, tmp_path / "whole"))
    for damage in (flip, truncate, remove):
        run = tmp_path / damage.__name__
        shutil.copytree(tmp_path / "whole", run)
        damage(run / "checkpoints/000000000096/slices/rank_00000.safetensors")
        result = train(toy.toy_config(dataset, run))
        assert result.resumed_from == 48
        message = capsys.readouterr().err
        assert "000000000096 is damaged and passed over" in message
        assert "rank_00000.safetensors" in message
        assert_equal_runs(run, tmp_path / "whole")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def remove(path: Path) -> None:
    path.unlink()


def test_no_whole_checkpoint_is_never_a_fresh_start(dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = toy.toy_config(dataset, run)
    train(config)
    for manifest in run.glob("checkpoints/*/manifest.json"):
        flip(manifest.with_name("trainer.json"))
    with pytest.raises(UserError, match="no whole checkpoint is left"):
        train(config)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match="missing, though"):
        train(config)
    (run / LATEST).unlink()
    assert train(config).resumed_from is None


@pytest.mark.parametrize(
    ("section", "value", "told"),
    [
        ("model", {"width": 25}, r"model\.width: got 25, but the run in .*/run was begun with 24;"),
        ("seed", 4, "seed: got 4, but the run in .*/run was begun with 3;"),
        ("data", {"shuffle_block": 3}, r"data\.shuffle_block: got 3, but .* begun with 2;"),
    ],
)
def test_another_run_is_refused(
    dataset: Path, tmp_path: Path, section: str, value: Any, told: str
) -> None:
    train(toy.toy_config(dataset, tmp_path / "run", train={"samples": 24}))
    with pytest.raises(UserError, match=f"^{told} go back to its config.yaml"):
        train(toy.toy_config(dataset, tmp_path / "run", **{section: value}))


def test_another_data_set_is_refused(tmp_path: Path) -> None:
    dataset = toy.write_dataset(tmp_path / "one", [32])
    train(toy.toy_config(dataset, tmp_path / "run", train={"samples": 24}))
    other = toy.write_dataset(tmp_path / "other", [32], seed=9)
    with pytest.raises(UserError, match=r"^data\.paths: got .*other.*, but the run in"):
        train(toy.toy_config(other, tmp_path / "run"))
    shutil.move(dataset, tmp_path / "moved")
    shutil.move(other, dataset)
    with pytest.raises(UserError, match=r"^data: differs from the run that was begun in"):
        train(toy.toy_config(dataset, tmp_path / "run", data={"cache": "ram"}))


@pytest.mark.parametrize("engine", ["local", "deepspeed"])
def test_divergence_ends_the_run_and_leaves_the_last_checkpoint(
    deepspeed_ready: None, dataset: Path, tmp_path: Path, engine: str
) -> None:
    how = {"samples": 960, "engine": engine}
    config = toy.toy_config(dataset, tmp_path / "run", objective={"poison_from": 50}, train=how)
    with pytest.raises(Diverged, match="20 steps in a row"):
        train(config)
    assert Diverged.exit_code == 4
    assert resolve_checkpoint(tmp_path / "run").manifest.samples <= 50 + 20 * 12
