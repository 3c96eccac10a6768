"""A pipeline from its file: frozen, shown, run on this machine."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from launches import unclip
from typer.testing import CliRunner

from base.errors import UserError
from base.lease import Lease, end_lease
from base.owner import Owner
from base.source import commit
from slurm import queue
from slurm.batch import Batch, signal_delay
from slurm.check import check_configs, require_inputs
from slurm.cli import app
from slurm.config import DEFAULTS, Resources
from slurm.environment import leave_array, with_code
from slurm.launch import require_acceptable
from slurm.pipeline import Pipeline
from slurm.queue import JobState
from slurm.records import Records
from slurm.runs import RunFiles
from slurm.status import status
from slurm.survey import survey

ROOT = Path(__file__).resolve().parents[2]
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


@pytest.mark.parametrize(
    ("golden", "stages", "overrides"),
    [
        ("prior", ["prior"], []),
        ("range", ["prior"], ["stages.prior.resources.min_nodes=4"]),
        ("container", ["prior"], ["stages.prior.resources.python=/opt/a b/python"]),
        ("ray", ["data"], ["stages.data.resources.nodes=4"]),
        ("array", ["prior.seed=1", "prior.seed=2"], []),
    ],
)
def test_the_batch_script(
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    golden: str,
    stages: list[str],
    overrides: list[str],
) -> None:
    """Word for word; another text may be right as well, but not unnoticed."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    swept = ["seed=1,2"] if golden == "array" else None
    pipeline = Pipeline.read(file, overrides, swept)
    found = pipeline.records.freeze(pipeline.nodes, write=False)
    specs = [found[name] for name in stages]
    asked = pipeline.config.asked(stages[0])
    text = Batch(pipeline.records, specs, asked, ["17", "18"]).script
    text = text.replace(str(Path(specs[0].code).parent), "FROZEN")
    text = text.replace(str(tmp_path), "/shared").replace(sys.executable, "python")
    assert text == (GOLDEN / f"{golden}.sbatch").read_text()


def test_what_this_python_finds_by_pythonpath_the_jobs_find_too(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the frozen code; not where `env` says otherwise, nor in a container."""
    monkeypatch.setenv("PYTHONPATH", f"/opt/site:{os.pathsep}lib")
    wanted = f"code:/opt/site:{Path('lib').absolute()}\n"
    for override, found in (
        ("resources.nodes=1", wanted),
        ("resources.env={PYTHONPATH: /mine}", "code:/mine\n"),
        ("resources.python=/opt/python", "code\n"),
    ):
        (line,) = [line for line in script(file, override) if "PYTHONPATH=" in line]
        assert line.endswith(found)


def test_lines_of_the_user_do_not_end_the_script_when_the_step_fails(file: Path) -> None:
    """With `set -e` it would end before it asks for another run."""
    lines = script(file, "stages.data.resources.setup=[set -euo pipefail]")
    (asked,) = [n for n, line in enumerate(lines) if line == "set -euo pipefail\n"]
    assert lines[asked + 1].startswith("set +e")
    assert next(n for n, line in enumerate(lines) if line.startswith("srun ")) > asked + 1


def script(file: Path, override: str) -> list[str]:
    """That of the stage `data`, by lines."""
    pipeline = Pipeline.read(file, [override])
    spec = pipeline.records.freeze(pipeline.nodes, write=False)["data"]
    return Batch(pipeline.records, [spec], pipeline.config.asked("data")).script.splitlines(True)


def test_the_page_shows_the_script_of_its_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/slurm.md on 64 GPUs, but for the hash of the code."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    page = (ROOT / "docs/slurm.md").read_text()
    shown = page.partition("# ---- prior ----\n")[2].partition("\n```")[0]
    out = "/shared/runs/paper"
    pipeline = Pipeline.read(ROOT / "configs/pipelines/paper.yaml", [f"out={out}"])
    spec = pipeline.records.freeze(pipeline.nodes, write=False)["prior"]
    needs = ["<job of vectors>", "<job of clip>"]
    text = Batch(pipeline.records, [spec], pipeline.config.asked("prior"), needs).script
    text = text.replace(spec.code, f"{out}/launch/frozen/HASH/code")
    text = text.replace(sys.executable, "/shared/unclip/.venv/bin/python")
    assert shown.rstrip() == re.sub(r"\n{3,}", "\n\n", text).rstrip()


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
        ("resources.time=00:00:00", r"resources\.time: got '00:00:00', expected .* above 0"),
        ("resources.env={A B: '1'}", r"resources\.env: got 'A B', expected a variable's name"),
        ("resources.partitoin=gpu", r"resources\.partitoin: .*partition"),
        ("stages.prior.resources.nodes=0", r"stages\.prior.*nodes"),
        ("stages.data.resources.tasks_per_node=2", r"data\.resources\.tasks_per_node: got 2"),
        ("stages.data.resources.min_nodes=1", r"data\.resources\.min_nodes: is for stages"),
        (
            "stages.prior.resources.time='2'",
            r"signal_delay_s: got 300, .* than time, 120",
        ),
        ("stages.prior.resources.min_nodes=9", r"prior\.resources\.min_nodes: got 9, .* 8"),
        ("resources.sbatch={output: here}", r"resources\.sbatch: got 'output', which the launcher"),
        ("resources.sbatch={gpus_per_node: 8}", r"sbatch: got 'gpus_per_node', which the launcher"),
        ("stages.Data.kind=prepare", r"Data"),
        ("stages.launch={kind: prepare, inputs: [pairs]}", r"got name 'launch', whose folder is"),
    ],
)
def test_mistakes_are_found_before_anything_is_submitted(
    file: Path, override: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        call(file, "--dry-run", "--set", override)
    assert not (file.parent / "run").exists()


def test_a_stage_can_undo_an_option_of_the_pipelines(file: Path) -> None:
    undone = "stages.prior.resources.sbatch={exclusive: false}"
    pipeline = Pipeline.read(file, ["resources.sbatch={exclusive: true}", undone])
    specs = pipeline.records.freeze(pipeline.nodes, write=False)
    texts = {
        name: Batch(pipeline.records, [spec], pipeline.config.asked(name)).script
        for name, spec in specs.items()
    }
    assert "#SBATCH --exclusive\n" in texts["data"]
    assert "exclusive" not in texts["prior"]


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        (
            "sbatch: unrecognized option '--exclusiv'",
            "unrecognized option '--exclusiv'",
        ),
        ("allocation failure: Invalid qos specification", "Invalid qos specification"),
        ("allocation failure: Unable to contact slurm controller (connect failure)", None),
        ("sbatch: fatal: Could not establish a configuration source", None),
    ],
)
def test_what_sbatch_refuses_is_told_but_not_that_it_cannot_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, reason: str | None
) -> None:
    program = tmp_path / "sbatch"
    program.write_text(f'#!/bin/sh\necho "{told}" >&2\nexit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    found = queue.refusal("#!/bin/bash\n")
    assert found is None if reason is None else found is not None and reason in found


def test_a_job_that_was_submitted_with_another_config_is_told(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline.read(file, [])
    specs = pipeline.records.freeze(pipeline.nodes)
    for number, spec in enumerate(specs.values(), 17):
        pipeline.records.set_job(spec, str(number))
    queued = {"17": JobState("RUNNING"), "18": JobState("PENDING")}
    monkeypatch.setattr("slurm.queue.states", lambda jobs: queued)
    assert survey(pipeline, specs).alive == {"data": "17", "prior": "18"}
    (file.parent / "prior.yaml").write_text("stage: prior\nseed: 1\n")
    edited = Pipeline.read(file, [])
    now = edited.records.freeze(edited.nodes)
    with pytest.raises(UserError, match=r"stages\.prior: job 18 was submitted with another"):
        survey(edited, now)
    queued["18"] = JobState("FAILED")
    assert survey(edited, now).names_left == {"prior"}


def test_what_needs_something_that_is_to_be_made_anew_is_to_be_too(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline.read(file, [])
    specs = pipeline.records.freeze(pipeline.nodes)
    for spec in specs.values():
        Path(spec.makes).mkdir(parents=True)
        pipeline.records.set_done(spec)
    monkeypatch.setattr("slurm.queue.states", lambda jobs: {})
    assert survey(pipeline, specs).done == {"data", "prior"}
    Path(specs["data"].makes).rmdir()
    assert survey(pipeline, specs).names_left == {"data", "prior"}


def test_why_a_stage_failed_is_the_cause_in_whichever_process(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline.read(file, [])
    specs = pipeline.records.freeze(pipeline.nodes)
    pipeline.records.set_job(specs["prior"], "17")
    monkeypatch.setattr("slurm.queue.states", lambda jobs: {"17": JobState("FAILED", "n[1-2]")})
    logs = pipeline.records.logs
    logs.mkdir()

    def reason() -> str | None:
        return status(pipeline)[1].reason

    assert reason() == f"it wrote no log; is {logs} in a folder that n[1-2] have as well?"
    (logs / "17_0_log.out").write_text("run: begins\n")
    (logs / "17_10_log.out").write_text("error: the last\n")
    assert reason() == "error: the last"
    (logs / "17_2_log.out").write_text("error: the first\nerror: no room left\n")
    assert reason() == "error: no room left"
    ended = "3 restarts at 64 samples without a step more, and ended with 1 again"
    with (logs / "17_0_log.out").open("a") as log:
        log.write(f"srun: error: n2: task 3: Out Of Memory\nerror: {ended}\n")
    assert reason() == f"error: no room left ({ended})"
    (logs / "17_2_log.out").unlink()
    (logs / "17_10_log.out").write_text("the last\n")
    assert reason() == f"srun: error: n2: task 3: Out Of Memory ({ended})"
    assert call(file, "--logs", "prior", "--rank", 10) == "the last\n"


def test_the_time_to_save_is_measured(file: Path) -> None:
    """At least two minutes, but no more than a fourth of the job's time."""
    pipeline = Pipeline.read(file, [])
    spec = pipeline.records.freeze(pipeline.nodes, write=False)["prior"]
    day, short = Resources(time="1-00:00:00"), Resources(time="00:04:00")
    assert signal_delay(spec, day) == 120
    assert signal_delay(spec, short) == 60
    assert spec.run is not None
    spec.run.mkdir(parents=True)
    RunFiles(spec.run).note("saved", samples=64, seconds=200.25)
    assert signal_delay(spec, day) == 431  # twice that, and half a minute
    text = Batch(pipeline.records, [spec], day.over(DEFAULTS)).script
    assert "#SBATCH --signal=USR2@431\n" in text


def test_a_dry_run_shows_all_and_writes_nothing(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slurm.dry_run._cost", lambda node, asked, plan: None)
    monkeypatch.setattr("slurm.dry_run.check_configs", lambda nodes: None)
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
    assert (frozen / "code/slurm/job.py").read_bytes() == (ROOT / "slurm/job.py").read_bytes()
    assert (frozen / "code/trainer/loop.py").is_file()
    told = subprocess.run(
        [sys.executable, "-c", "from base.source import commit; print(commit())"],
        env=with_code(os.environ, str(frozen / "code")),
        capture_output=True,
        text=True,
    )
    assert told.stdout.strip() == str(commit())
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


def test_a_stage_whose_need_is_made_otherwise_is_another(file: Path) -> None:
    one = Pipeline.read(file, [])
    two = Pipeline.read(file, ["stages.data.inputs=[others]"])
    assert one.nodes[1].files == two.nodes[1].files
    assert one.nodes[1].command == two.nodes[1].command
    assert one.nodes[1].fingerprint != two.nodes[1].fingerprint


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", r"stages\.prior: optim\.lrr: unknown key; did you mean lr"),
        ("train.batch=some", r"stages\.prior: train\.batch: got 'some', expected a whole number"),
    ],
)
def test_a_mistake_in_a_training_config_is_found_before(
    tmp_path: Path, override: str, message: str
) -> None:
    """By the trainer itself, whatever the machine has."""
    path, config = tmp_path / "p.yaml", ROOT / "configs/micro/prior.yaml"
    path.write_text(
        f"out: {tmp_path}/run\n"
        f"stages: {{prior: {{kind: train, config: {config}, data: [/d], clip: /c}}}}\n"
    )
    pipeline = Pipeline.read(path, [])
    check_configs(pipeline.nodes)
    wrong = Pipeline.read(path, [f"stages.prior.overrides=['{override}']"])
    with pytest.raises(UserError, match=message):
        check_configs(wrong.nodes)


def test_what_is_to_be_prepared_must_be_there(file: Path) -> None:
    with pytest.raises(UserError, match=r"stages\.data\.inputs: .*pairs: is not there"):
        require_inputs(Pipeline.read(file, []))
    (file.parent / "pairs").mkdir()
    require_inputs(Pipeline.read(file, []))
    require_inputs(Pipeline.read(file, ["stages.data.inputs=['s3://bucket/pairs']"]))


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
    for shard in range(3):
        path = data / f"commits/{shard:05d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
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
    assert (found["data"]["finished"], found["data"]["unit"]) == (3, "shards")
    assert found["prior"] == {
        **dict.fromkeys(["job", "nodes", "reason", "restarts", "finished", "unit"]),
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
    shown = call(file, "--status", "--cluster", "local")
    assert "128 / 640" in shown
    assert "3 shards" in shown


def test_a_failure_is_told_to_all_that_wait_for_it(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm says so of the next stage alone; a live status would never end."""
    text = file.read_text()
    again = text[text.index("  prior:") :].replace("  prior:", "  second:")
    file.write_text(text + again + "    init_from: stages.prior\n")
    pipeline = Pipeline.read(file, [])
    specs = pipeline.records.freeze(pipeline.nodes)
    for name, job in (("data", "7"), ("prior", "8"), ("second", "9")):
        pipeline.records.set_job(specs[name], job)
    known = {"7": JobState("FAILED"), "8": JobState("PENDING", reason=queue.HOPELESS)}
    known["9"] = JobState("PENDING", reason="Dependency")
    monkeypatch.setattr(queue, "states", lambda jobs: known)
    stages = status(pipeline)
    assert [stage.moving for stage in stages] == [False, False, False]
    assert stages[2].reason == "DependencyNeverSatisfied"
    known |= {"7": JobState("RUNNING"), "8": JobState("PENDING", reason="Dependency")}
    assert [stage.moving for stage in status(pipeline)] == [True, True, True]


def test_a_lease_that_an_ended_job_of_the_stage_left_is_no_hindrance(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed on another machine, it could not let go; anybody else's lease is."""
    monkeypatch.setattr(queue, "refusal", lambda script: None)
    pipeline = Pipeline.read(file, [])
    spec = pipeline.records.freeze(pipeline.nodes)["prior"]
    node = next(node for node in pipeline.nodes if node.name == "prior")
    run = Path(spec.makes)
    run.mkdir(parents=True)
    elsewhere = replace(Owner.me(), host="n17", job="26", token="t")
    (run / "unclip.lock").write_bytes(elsewhere.to_bytes())
    pipeline.records.set_job(spec, "25")
    with pytest.raises(UserError, match=r"in use by host n17, .*, Slurm job 26"):
        require_acceptable(pipeline, [spec], node)
    pipeline.records.set_job(spec, "26")
    require_acceptable(pipeline, [spec], node)
    end_lease(run, elsewhere)
    with Lease(run):
        pass


def test_a_launch_from_an_element_of_an_array_is_none_itself() -> None:
    environment = {"SLURM_ARRAY_JOB_ID": "27", "SLURM_ARRAY_TASK_ID": "5", "SLURM_JOB_ID": "29"}
    leave_array(environment)
    assert environment == {"SLURM_JOB_ID": "29"}


def test_what_runs_here_can_be_asked_to_end(file: Path) -> None:
    folder = Pipeline.read(file, []).records.folder
    here = (file, "--cancel", "--cluster", "local")
    assert json.loads(unclip("launch", *here, "--json")) == {"asked": None}
    with pytest.raises(UserError, match="--logs: with --cluster local stages write where they"):
        call(file, "--logs", "prior", "--cluster", "local")
    program = "from base.lease import Lease; import sys, time\nwith Lease(sys.argv[1]):"
    program += "\n print(1, flush=True); time.sleep(60)"
    words = [sys.executable, "-c", program, folder]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert json.loads(unclip("launch", *here, "--json")) == {"asked": child.pid}
        assert child.wait(30) == -signal.SIGTERM


def test_stages_that_run_here_have_states(file: Path) -> None:
    pipeline = Pipeline.read(file, [])
    records = pipeline.records

    def states() -> dict[str, str]:
        shown = unclip("launch", file, "--status", "--cluster", "local", "--json")
        return {stage["name"]: stage["state"] for stage in json.loads(shown)["stages"]}

    records.folder.mkdir(parents=True)
    records.set_here("data", 2)
    assert states() == {"data": "ended with 2", "prior": "not submitted"}
    records.set_here("data", None)
    with Lease(records.folder):
        assert states() == {"data": "RUNNING", "prior": "not submitted"}
    assert states() == {"data": "interrupted", "prior": "not submitted"}
