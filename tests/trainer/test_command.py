"""The trainer's commands as processes: stop and go on, exit codes, lease, checkpoints, mistakes."""

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import toy
from typer.testing import CliRunner

from base.command import line_and_code
from base.errors import UserError
from trainer.checkpoint.manifest import LATEST
from trainer.cli import app
from trainer.loop import train
from trainer.stages import load_train_config

Command = Callable[..., "subprocess.Popen[str]"]


def invoke(*arguments: object) -> Any:
    """Runs a command in this process; its JSON."""
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    return json.loads(result.stdout)


def wait_for_line(run: Path, process: "subprocess.Popen[str]") -> None:
    """Until the run has written metrics."""
    while not (run / "metrics.jsonl").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.mark.timeout(900)  # five processes that import torch, perhaps on a busy machine
def test_stop_and_go_on_through_the_real_command(
    dataset: Path, tmp_path: Path, command: Command
) -> None:
    """SIGTERM: saved, 75. A second owner: refused, 2. Ctrl-C: saved, 130. Then to the end."""
    out = tmp_path / "run"
    slow = {"delay": 0.1}
    how = {"samples": 2400, "log_every": 12, "checkpoint_every": 2400}
    path = toy.write_toy_config(tmp_path / "a.yaml", dataset, out, objective=slow, train=how)
    first = command("train", path)
    wait_for_line(out, first)
    second = command("train", path)
    _, message = second.communicate(timeout=280)
    assert second.returncode == 2
    assert message.startswith(f"error: {out}: in use by host ")
    assert f"pid {first.pid}" in message
    first.send_signal(signal.SIGTERM)
    _, message = first.communicate(timeout=280)
    assert first.returncode == 75, message
    assert "error: " in message
    assert "stopped on request and saved" in message
    stopped_at = int((out / LATEST).read_text())
    assert 0 < stopped_at < 2400

    (out / "metrics.jsonl").unlink()
    third = command("train", path)
    wait_for_line(out, third)
    third.send_signal(signal.SIGINT)
    _, message = third.communicate(timeout=280)
    assert third.returncode == 130, message
    assert stopped_at < int((out / LATEST).read_text()) < 2400

    last = command("train", path, "--json", "--set", "objective.delay=0")
    output, message = last.communicate(timeout=280)
    assert last.returncode == 0, message
    result = json.loads(output)
    assert result["samples"] == 2400
    assert result["resumed_from"] > stopped_at


def test_under_torchrun_a_stop_is_agreed_by_all(
    deepspeed_ready: None, dataset: Path, tmp_path: Path
) -> None:
    """One rank of two is asked to stop; both save the same step and end."""
    import sys

    import processes

    out = tmp_path / "run"
    path = toy.write_toy_config(
        tmp_path / "a.yaml",
        dataset,
        out,
        objective={"stop_at": [19]},  # in the second rank's share of the second batch
        train={"engine": "deepspeed", "checkpoint_every": 960},
    )
    script = str(processes.HERE / "toy.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc-per-node=2", script, "train", str(path)],
        cwd=processes.ROOT,
        env=processes.environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode != 0
    assert "exitcode  : 75" in done.stderr or "exitcode: 75" in done.stderr, done.stderr[-3000:]
    assert (out / LATEST).read_text().strip() == "000000000036"
    shown = invoke("checkpoint", "show", out)
    assert (shown["world_size"], shown["state"]["samples"]) == (2, 36)


def test_checkpoint_commands(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(toy.toy_config(dataset, out))
    listed = invoke("checkpoint", "list", out)["checkpoints"]
    assert [(row["samples"], row["latest"]) for row in listed] == [(48, False), (96, True)]
    shown = invoke("checkpoint", "show", out, "--at", 48)
    assert (shown["samples"], shown["steps"], shown["state"]["ema_updates"]) == (48, 4, 4)
    assert invoke("checkpoint", "verify", out)["faults"] == {
        "000000000048": [],
        "000000000096": [],
    }
    target = tmp_path / "weights.safetensors"
    assert invoke("checkpoint", "export", out, target)["bytes"] == target.stat().st_size
    (out / LATEST).rename(tmp_path / LATEST)
    told = CliRunner().invoke(app, ["checkpoint", "list", str(out)], catch_exceptions=False)
    assert told.stdout.count("(latest)") == 0
    assert told.stdout.count(" steps ") == 2
    assert "latest: missing; the next `unclip train` mends it" in told.stderr
    with pytest.raises(UserError, match="latest: missing; choose with --at, or let `train` mend"):
        CliRunner().invoke(app, ["checkpoint", "show", str(out)], catch_exceptions=False)
    (tmp_path / LATEST).rename(out / LATEST)
    damaged = out / "checkpoints/000000000096/trainer.json"
    damaged.write_text(damaged.read_text() + " ")
    with pytest.raises(UserError, match=r"trainer\.json: got \d+ bytes, expected"):
        CliRunner().invoke(app, ["checkpoint", "verify", str(out)], catch_exceptions=False)
    plain = CliRunner().invoke(app, ["checkpoint", "list", str(out)], catch_exceptions=False)
    assert "000000000096" in plain.stdout
    assert "(latest)" in plain.stdout
    shutil.rmtree(out / "checkpoints")
    with pytest.raises(UserError, match="latest: names 000000000096, which is not there"):
        CliRunner().invoke(app, ["checkpoint", "verify", str(out)], catch_exceptions=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("optim.lr=fast", "optim.lr: got 'fast', expected a number; in --set optim.lr=fast"),
        ("optim.warm_up=1", "optim.warm_up: unknown key; did you mean warmup?"),
        ("train.zero_stage=4", "train.zero_stage: got 4, expected a value <= 3"),
        ("model.widht=3", "model.widht: unknown key; did you mean width?"),
        ("objective.pictures=1", "objective.pictures: got 1, expected true or false"),
        ("train.micro_batch=13", "train: micro_batch: got 13, expected <= batch 12"),
        ("stage=toi", "stage: got 'toi'; did you mean toy?"),
    ],
)
def test_mistakes_in_configs_are_one_line(
    dataset: Path, tmp_path: Path, change: str, message: str
) -> None:
    path = toy.write_toy_config(tmp_path / "a.yaml", dataset, tmp_path / "run")
    with pytest.raises(UserError) as caught:
        load_train_config(path, [change])
    line, code = line_and_code(caught.value)
    assert line.startswith(message)
    assert code == 2


def test_other_mistakes_are_one_line(dataset: Path, tmp_path: Path) -> None:
    path = toy.write_toy_config(tmp_path / "a.yaml", tmp_path / "absent", tmp_path / "run")
    with pytest.raises(UserError, match="not a DATASET"):
        train(load_train_config(path))
    with pytest.raises(UserError, match="No such file"):
        load_train_config(tmp_path / "b.yaml")
    (tmp_path / "c.yaml").write_text("out: x\n")
    with pytest.raises(UserError, match="stage: missing; expected one of"):
        load_train_config(tmp_path / "c.yaml")
    for arguments in (["list"], ["verify"], ["show"], ["export", str(tmp_path / "w")]):
        name, *rest = arguments
        with pytest.raises(UserError, match="absent"):
            CliRunner().invoke(
                app, ["checkpoint", name, str(tmp_path / "absent"), *rest], catch_exceptions=False
            )


def test_data_that_do_not_fit_are_refused(dataset: Path, tmp_path: Path) -> None:
    """Another width, no embeddings, embeddings of two CLIPs, a set that is not there."""

    def refused(match: str, **sections: Any) -> None:
        with pytest.raises(UserError, match=match):
            train(toy.toy_config(dataset, tmp_path / "run", **sections))

    refused(r"model\.embedding_dim: got 9, expected 8", model={"embedding_dim": 9})
    refused("has no embeddings named 'other'", data={"embeddings": "other"})
    bare, foreign = (toy.write_dataset(tmp_path / name, [5]) for name in ("bare", "foreign"))
    for root, clip in ((bare, None), (foreign, {"weights_sha256": "1" * 64})):
        info = json.loads((root / "dataset.json").read_text())
        info["clip"] = clip and {**info["clip"], **clip}
        (root / "dataset.json").write_text(json.dumps(info))
    refused("unclip data embed", data={"paths": [str(bare)]})
    both = {"paths": [str(dataset), str(foreign)]}
    refused("embedded by another CLIP", data=both)


def test_values_that_do_not_go_together_are_one_line(tmp_path: Path, dataset: Path) -> None:
    import stages

    more = ["model.unet.attention_levels=[1]", "model.unet.context_width=16"]
    with pytest.raises(UserError, match=r"^upsampler: .*convolutions only"):
        train(stages.stage_config("up64", dataset, tmp_path, "run", *more))
    with pytest.raises(UserError, match="crop: got 128, expected <= 64"):
        train(stages.stage_config("up64", dataset, tmp_path, "run", "objective.crop=128"))


def test_config_of_a_run_reads_back_equal(dataset: Path, tmp_path: Path) -> None:
    config = toy.toy_config(dataset, tmp_path / "run", train={"samples": 24})
    train(config)
    assert load_train_config(tmp_path / "run" / "config.yaml") == config
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["packages"]["torch"]
    assert len(environment["commit"] or "0" * 40) == 40
    assert environment["processes"] == 1


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["checkpoint", "list", str(tmp_path)])
    assert isinstance(done.exception, UserError)
    assert str(done.exception) == f"{tmp_path}: is no RUN, it has no config.yaml"
