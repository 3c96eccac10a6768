"""Other ways to the same: sweeps, plain batch scripts, Ray over nodes; and what is in their way."""

import getpass
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from launches import (
    ROOT,
    by_template,
    jobs,
    log_of,
    pipeline,
    same_files,
    unclip,
    wait_done,
    weights,
)
from slurm_jobs import state, submit, wait, wait_for

from base import yaml
from base.lease import Lease
from slurm.queue import JobState, states
from slurm.runs import RunFiles
from slurm.testbed.cluster import Cluster

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    unclip("data", "synth", folder / "scenes", "--count", 1200, "--seed", 3)
    return folder / "scenes"


@pytest.fixture(scope="module")
def dataset(scenes: Path) -> Path:
    """What one process on one machine makes."""
    out = scenes.parent / "dataset"
    unclip("data", "prepare", scenes, "--out", out, "--set", "samples_per_shard=40")
    return out


@pytest.fixture
def blocked(cluster: Cluster, tmp_path: Path) -> Iterator[str]:
    """A job that has all nodes, so that those after it wait."""
    job = submit(cluster, tmp_path, "block", "sleep 600", "--nodes=2", "--exclusive")
    wait_for(cluster, job, "RUNNING")
    yield job
    cluster.run("scancel", job)


def test_plain_batch_scripts_do_the_same(cluster: Cluster, dataset: Path, tmp_path: Path) -> None:
    """One signal in the middle of each; the run's bits are those of a launch that had none."""
    path = pipeline(tmp_path / "calm", data=str(dataset))
    found = jobs(path, cluster)
    config = yaml.parse(path.read_text(), "")[0]["stages"]["clip"]
    run = tmp_path / "hurt/run/clip"
    settings = [f"--set={each}" for each in config["overrides"]]
    words = (config["config"], run, f'--set=data.paths=["{dataset}"]', *settings)
    job = by_template(cluster, tmp_path, "train", *words)
    metrics = run / "metrics.jsonl"
    wait(lambda: metrics.is_file() and metrics.read_text().count("\n") > 2, "steps", 240)
    cluster.run("scancel", "--signal=USR2", job)
    wait_for(cluster, job, "COMPLETED", "FAILED", seconds=240)
    log = (tmp_path / "train.out").read_text()
    assert state(cluster, job) == "COMPLETED", log
    wait_done(path, found, cluster)
    assert weights(tmp_path / "hurt") == weights(tmp_path / "calm")
    assert log.count("is requeued and goes on at ") == 1
    assert str(RunFiles(run).preemptions()[0]) in log


def test_a_mistake_of_one_process_is_not_hidden_by_another_that_saves(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Slurm ends the first one, which leaves with 75: srun tells that, and not the other's 2."""
    saves = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(75)); time.sleep(60)"
    python, words = sys.executable, ("-m", "slurm.task", "data", "status", "/nowhere")
    program = tmp_path / "step.sh"
    program.write_text(
        f'[ "$SLURM_PROCID" = 0 ] && exec {python} -c "{saves}"\n'
        f"sleep 2; exec {python} {' '.join(words)}\n"
    )
    script = (
        f"export PYTHONPATH={ROOT}\nsrun --kill-on-bad-exit=1 --wait=0 bash {program}\n"
        f'echo "srun: $?"; exec {python} -m slurm.after 75'
    )
    job = submit(cluster, tmp_path, "hidden", script, "--nodes=2", "--requeue")
    wait_for(cluster, job, "FAILED", "COMPLETED", seconds=90)
    log = (tmp_path / "hidden.out").read_text()
    assert "srun: 75" in log
    assert "/nowhere" in log
    assert state(cluster, job) == "FAILED"
    assert "requeued" not in log


def test_ray_over_two_nodes_stopped_in_the_middle_makes_the_same_bytes(
    cluster: Cluster, scenes: Path, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "dataset"
    words = (scenes, "--out", out, "--set", "samples_per_shard=40")
    job = by_template(cluster, tmp_path, "prepare", *words)
    wait(lambda: len(list(out.rglob("*.tar"))) > 2, "some shards", 240)
    cluster.run("scancel", "--signal=USR2", job)
    wait_for(cluster, job, "COMPLETED", "FAILED", seconds=180)
    log = (tmp_path / "prepare.out").read_text()
    assert state(cluster, job) == "COMPLETED", log
    assert log.count("Ray: 2 nodes") == 2
    assert log.count("is requeued") == 1
    same_files(out, dataset)


def test_a_sweep_is_an_array_whose_elements_are_requeued_alone(
    cluster: Cluster, dataset: Path, tmp_path: Path
) -> None:
    path = pipeline(tmp_path, data=str(dataset), resources={"nodes": 1})
    sweep = ("--sweep", "optim.lr=1e-3,2e-3", "--json")
    found = json.loads(unclip("launch", path, *sweep, cluster=cluster))["jobs"]
    first, second = found["clip.optim.lr=1e-3"], found["clip.optim.lr=2e-3"]
    assert first.removesuffix("_0") == second.removesuffix("_1")
    metrics = tmp_path / "run/clip.optim.lr=2e-3/metrics.jsonl"
    wait(lambda: metrics.is_file() and metrics.read_text().count("\n") > 2, "steps", 240)
    cluster.run("scancel", "--signal=USR2", second)
    shown: dict[str, dict[str, Any]] = {}

    def over() -> bool:
        told = unclip("launch", path, *sweep, "--status", cluster=cluster)
        shown.update({each["name"]: each for each in json.loads(told)["stages"]})
        states = {each["state"] for each in shown.values()}
        assert "FAILED" not in states
        return states == {"done"}

    wait(over, "end of the sweep", 240, every=2)
    assert [shown[name]["restarts"] for name in found] == [0, 1]
    for value, restarts in (("1e-3", 0), ("2e-3", 1)):
        run = RunFiles(tmp_path / f"run/clip.optim.lr={value}")
        assert [each["event"] for each in run.events()].count("requeued") == restarts
        config = yaml.parse((run.folder / "config.yaml").read_text(), "")[0]
        assert config["optim"]["lr"] == float(value)
    again = json.loads(unclip("launch", path, *sweep, cluster=cluster))
    assert again["jobs"] == {}


def test_a_folder_in_use_is_told_before_anything_is_submitted(
    cluster: Cluster, dataset: Path, tmp_path: Path
) -> None:
    path = pipeline(tmp_path, data=str(dataset))
    with Lease(tmp_path / "run/clip"):
        told = unclip("launch", path, cluster=cluster, code=2)
    assert f"stages.clip: {tmp_path}/run/clip is in use by host " in told
    assert f"pid {os.getpid()}" in told
    assert cluster.run("squeue", "--noheader").strip() == ""


def test_a_dry_run_asks_slurm_what_it_would_refuse(
    cluster: Cluster, dataset: Path, tmp_path: Path
) -> None:
    path = pipeline(tmp_path, data=str(dataset))
    wrong = ("--dry-run", "--set", "resources.partition=gpus")
    told = unclip("launch", path, *wrong, cluster=cluster, code=2)
    assert "stages.clip: Slurm refuses it: invalid partition" in told
    assert "srun" in unclip("launch", path, "--dry-run", cluster=cluster)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def quota(cluster: Cluster) -> Iterator[Callable[[str], None]]:
    """Sets a limit of this user's, NAME=VALUE; those that were set are lifted at the end."""
    user = ("sacctmgr", "--immediate", "modify", "user", getpass.getuser(), "set")
    names: list[str] = []

    def limit(text: str) -> None:
        names.append(text.rpartition("=")[0])
        cluster.run(*user, text)

    yield limit
    for name in names:
        cluster.run(*user, f"{name}=-1")


def test_a_quota_that_refuses_is_told_before_anything_is_submitted(
    cluster: Cluster, dataset: Path, tmp_path: Path, quota: Callable[[str], None]
) -> None:
    path = pipeline(tmp_path, data=str(dataset))
    quota("MaxSubmitJobs=0")
    for more in ((), ("--dry-run",)):
        told = unclip("launch", path, *more, cluster=cluster, code=2)
        assert "stages.clip: Slurm refuses it: AssocMaxSubmitJobLimit Job violates" in told
    assert not (tmp_path / "run/launch/jobs").exists()


def test_a_quota_that_is_reached_on_the_way_leaves_nothing_behind(
    cluster: Cluster, scenes: Path, tmp_path: Path, quota: Callable[[str], None]
) -> None:
    """The first job is taken, the second refused: then the first is cancelled."""
    path = pipeline(tmp_path, scenes)
    quota("MaxSubmitJobs=1")
    told = unclip("launch", path, cluster=cluster, code=2)
    assert "stages.clip: Slurm refuses it: " in told
    assert "of this launch were cancelled" in told
    wait(lambda: cluster.run("squeue", "--noheader").strip() == "", "no job", 30)


def test_a_quota_that_makes_wait_is_in_the_status(
    cluster: Cluster, dataset: Path, tmp_path: Path, quota: Callable[[str], None]
) -> None:
    quota("MaxTRES=cpu=1")
    path = pipeline(tmp_path, data=str(dataset))
    job = jobs(path, cluster)["clip"]

    def reason() -> str:
        shown = json.loads(unclip("launch", path, "--status", "--json", cluster=cluster))
        return str(shown["stages"][0]["reason"])

    wait(lambda: reason() == "AssocMaxCpuPerJobLimit", "Slurm's reason", 30)
    cluster.run("scancel", job)


def test_a_folder_that_the_nodes_do_not_have(
    cluster: Cluster, dataset: Path, tmp_path: Path, blocked: str
) -> None:
    """Slurm can then write no log either; the status says what may be the matter."""
    path = pipeline(tmp_path, data=str(dataset))
    job = jobs(path, cluster)["clip"]
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    cluster.run("scancel", blocked)
    wait(lambda: state(cluster, job) not in ("PENDING", "RUNNING", "COMPLETING"), "its end", 60)
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    (tmp_path / "elsewhere").rename(tmp_path / "run")
    (stage,) = json.loads(unclip("launch", path, "--status", "--json", cluster=cluster))["stages"]
    assert stage["state"] == "FAILED"
    assert f"it wrote no log; is {tmp_path}/run/launch/jobs in a folder that " in stage["reason"]


def test_the_status_without_accounting_and_why_a_stage_failed(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """squeue and scontrol alone, as on clusters that keep no accounts."""
    bare = tmp_path / "bin"
    bare.mkdir()
    for name in ("sbatch", "srun", "squeue", "scontrol", "scancel"):
        program = shutil.which(name)
        assert program is not None
        (bare / name).symlink_to(program)
    monkeypatch.setenv("PATH", f"{bare}:{Path(sys.executable).parent}")
    assert shutil.which("sacct") is None
    path = pipeline(tmp_path, data="/nowhere/at/all")
    job = jobs(path, cluster)["clip"]
    wait_for(cluster, job, "FAILED", seconds=120)
    (stage,) = json.loads(unclip("launch", path, "--status", "--json", cluster=cluster))["stages"]
    assert (stage["state"], stage["job"]) == ("FAILED", job)
    assert stage["reason"].startswith("error: ")
    assert "/nowhere/at/all" in stage["reason"]
    assert stage["reason"] in log_of(path, "clip", cluster)


def test_the_accounting_tells_of_jobs_that_the_controller_has_forgotten(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit(cluster, tmp_path, "fails", "exit 7")
    wait_for(cluster, job, "FAILED")
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("slurm.queue._squeue", lambda jobs: {})
    wait(lambda: states([job]) == {job: JobState("FAILED", "n1")}, "accounting", 30)
    assert states([job])[job].failed
