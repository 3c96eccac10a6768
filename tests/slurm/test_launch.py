"""A pipeline from its file: frozen, shown, run on this machine."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from base.errors import UserError
from slurm import batch
from slurm.cli import app
from slurm.config import DEFAULTS, Resources
from slurm.launch import Pipeline
from slurm.records import Records
from slurm.runs import RunFiles

GOLDEN = Path(__file__).parent / "golden"

FILE = """\
out: {out}
resources: {{partition: gpu, account: lab, time: "1-00:00:00", env: {{NCCL_DEBUG: WARN}}}}
stages:
  data: {{kind: prepare, inputs: [pairs], resources: {{partition: cpu, cpus_per_task: 16}}}}
  prior:
    kind: train
    config: prior.yaml
    data: [stages.data]
    resources:
      nodes: 8
      gpus_per_node: 8
      cpus_per_task: 12
      mem_gb: 900.5
      signal_delay_s: 300
      exclude: node[13-14]
      constraint: h100
      setup: [module load cuda]
      env: {{NCCL_SOCKET_IFNAME: ib0}}
      srun: [--cpu-bind=none]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "prior.yaml").write_text("stage: prior\n")
    path = tmp_path / "pipeline.yaml"
    path.write_text(FILE.format(out=tmp_path / "run"))
    return path


def call(*words: object) -> str:
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False).stdout


def test_the_batch_script_of_many_nodes(file: Path, tmp_path: Path) -> None:
    """Word for word; another text may be right as well, but not unnoticed."""
    pipeline = Pipeline.read(file, [])
    specs = pipeline.records.freeze(pipeline.nodes, write=False)
    prior = next(node for node in pipeline.nodes if node.name == "prior")
    given = batch.parameters([specs["prior"]], pipeline.asked(prior), ["17", "18"])
    text = batch.script(pipeline.records, given)
    text = text.replace(str(Path(specs["prior"].code).parent), "FROZEN")
    text = text.replace(str(tmp_path), "/shared").replace(sys.executable, "python")
    path = GOLDEN / "prior.sbatch"
    assert text == path.read_text()


def test_stages_take_from_the_pipeline_what_they_do_not_say() -> None:
    pipeline = Resources(partition="gpu", time="02:30:01", env={"A": "1", "B": "1"})
    asked = Resources(nodes=2, gpus_per_node=4, env={"B": "2"}).over(pipeline.over(DEFAULTS))
    assert (asked.partition, asked.nodes, asked.tasks, asked.minutes) == ("gpu", 2, 4, 151)
    assert asked.env == {"A": "1", "B": "2"}
    assert asked.gpus_per_node == 4
    assert Resources().over(DEFAULTS).gpus_per_node == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("resources.time=soon", r"resources\.time: got 'soon', expected D-HH:MM:SS"),
        ("resources.partitoin=gpu", r"resources\.partitoin: .*partition"),
        ("stages.prior.resources.nodes=0", r"stages\.prior.*nodes"),
        ("stages.data.resources.tasks_per_node=2", r"data\.resources\.tasks_per_node: got 2"),
        ("stages.data.resources.min_nodes=1", r"data\.resources\.min_nodes: is for stages"),
        (
            "stages.prior.resources.time='2'",
            r"signal_delay_s: got 300, .* than time, 120",
        ),
        ("stages.prior.resources.min_nodes=9", r"prior\.resources\.min_nodes: got 9, .* 8"),
        ("stages.Data.kind=prepare", r"Data"),
    ],
)
def test_mistakes_are_found_before_anything_is_submitted(
    file: Path, override: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        call(file, "--dry-run", "--set", override)
    assert not (file.parent / "run").exists()


def test_the_time_to_save_is_measured(file: Path) -> None:
    """At least two minutes, but no more than a fourth of the job's time."""
    pipeline = Pipeline.read(file, [])
    spec = pipeline.records.freeze(pipeline.nodes, write=False)["prior"]
    day, short = Resources(time="1-00:00:00"), Resources(time="00:04:00")
    assert batch.signal_delay(spec, day) == 120
    assert batch.signal_delay(spec, short) == 60
    assert spec.run is not None
    spec.run.mkdir(parents=True)
    RunFiles(spec.run).note("saved", samples=64, seconds=200.25)
    assert batch.signal_delay(spec, day) == 431  # twice that, and half a minute
    given = batch.parameters([spec], day.over(DEFAULTS))
    assert "#SBATCH --signal=USR2@431\n" in batch.script(pipeline.records, given)


def test_a_dry_run_shows_all_and_writes_nothing(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slurm.dry_run._cost", lambda node, asked: None)
    shown = json.loads(call(file, "--dry-run", "--json"))
    assert [stage["name"] for stage in shown["stages"]] == ["data", "prior"]
    assert shown["stages"][1]["needs"] == ["data"]
    assert "--dependency='afterok:<job of data>'" in shown["stages"][1]["script"]
    assert not (file.parent / "run").exists()
    plain = call(file, "--dry-run")
    for stage in shown["stages"]:
        assert stage["script"] in plain


def test_a_later_edit_does_not_change_what_was_frozen(file: Path) -> None:
    pipeline = Pipeline.read(file, [])
    specs = pipeline.records.freeze(pipeline.nodes)
    frozen = Path(specs["prior"].code).parent
    assert (frozen / "code/slurm/job.py").read_bytes() == Path(batch.__file__).with_name(
        "job.py"
    ).read_bytes()
    assert (frozen / "code/trainer/loop.py").is_file()
    (file.parent / "prior.yaml").write_text("stage: prior\nseed: 1\n")
    assert (frozen / "configs/prior.yaml").read_text() == "stage: prior\n"
    again = pipeline.records.freeze(Pipeline.read(file, []).nodes)
    assert again["prior"].code != specs["prior"].code
    assert again["prior"].fingerprint != specs["prior"].fingerprint
    assert again["data"].fingerprint == specs["data"].fingerprint


def test_resources_do_not_make_another_stage(file: Path) -> None:
    one = Pipeline.read(file, [])
    two = Pipeline.read(file, ["resources.partition=other", "stages.prior.resources.nodes=2"])
    assert one.records.freeze(one.nodes, write=False) == two.records.freeze(two.nodes, write=False)


def test_without_slurm_one_line_says_what_to_do(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"no Slurm on this machine .* --cluster local"):
        call(file)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cluster", "pbs"], "--cluster: got 'pbs', expected slurm or local"),
        (["--status", "--cancel"], "one at a time"),
        (["--logs", "clip"], "--logs: got 'clip', expected one of data, prior"),
        (["--logs", "prior"], "stage prior has no job yet"),
    ],
)
def test_wrong_words_are_told(file: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call(file, *words)


def test_status_of_what_was_not_begun_and_of_what_is_done(file: Path) -> None:
    pipeline = Pipeline.read(file, [])
    specs = pipeline.records.freeze(pipeline.nodes, write=False)
    data = Path(specs["data"].makes)
    data.mkdir(parents=True)
    Records(pipeline.records.folder).set_done(specs["data"])
    run = Path(specs["prior"].makes)
    run.mkdir()
    (run / "config.yaml").write_text("train: {samples: 640}\n")
    (run / "latest").write_text("000000000064\n")
    line = {"samples": 128, "loss": 0.5, "samples_per_second": 64.0}
    (run / "metrics.jsonl").write_text(json.dumps(line) + '\n{"samples": 19')
    found: dict[str, Any] = {
        s["name"]: s
        for s in json.loads(call(file, "--status", "--cluster", "local", "--json"))["stages"]
    }
    assert found["data"]["state"] == "done"
    assert found["prior"] == {
        **dict.fromkeys(["job", "nodes", "reason", "restarts"]),
        "name": "prior",
        "state": "not submitted",
        "samples": 128,
        "total": 640,
        "rate": 64.0,
        "loss": 0.5,
        "seconds_left": 8.0,
        "checkpoint": 64,
        "seconds_lost": 0,
    }
    assert "128 / 640" in call(file, "--status", "--cluster", "local")
