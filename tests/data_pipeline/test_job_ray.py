"""One Ray over the processes of a job step, as srun would start them."""

import filecmp
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from base.errors import Unavailable, UserError
from data_pipeline.job_ray import job_ray, serve_job

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start(rank: int, port: int, *words: object) -> "subprocess.Popen[str]":
    """A process of a step of two."""
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": str(rank), "SLURM_CPUS_PER_TASK": "1"}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RAY_AUTH_TOKEN": "a" * 64}
    return subprocess.Popen(
        [sys.executable, "-m", "data_pipeline", *map(str, words)],
        env={**os.environ, **step, **meeting, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.timeout(600)
def test_two_processes_make_what_one_makes(tmp_path: Path) -> None:
    """And both end when the work is done."""
    scenes = [sys.executable, "-m", "data_pipeline", "synth", str(tmp_path / "pairs")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([*scenes, "--count", "60", "--seed", "3"], env=environment, check=True)
    words = ("prepare", tmp_path / "pairs", "--set", "samples_per_shard=10", "--out")
    alone = [sys.executable, "-m", "data_pipeline", *map(str, words), str(tmp_path / "one")]
    subprocess.run(alone, env=environment, check=True)
    port = free_port()
    both = [start(rank, port, *words, tmp_path / "two") for rank in (0, 1)]
    told = [process.communicate(timeout=280) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert "Ray: 2 nodes" in told[0][1]
    assert "60 of 60 kept" in told[0][0]
    assert told[1][0] == ""
    names = [str(path.relative_to(tmp_path / "one")) for path in (tmp_path / "one").rglob("*.*")]
    assert len([name for name in names if name.endswith(".tar")]) == 6
    differ = filecmp.cmpfiles(tmp_path / "one", tmp_path / "two", names, shallow=False)[1:]
    assert differ == ([], [])


def test_a_port_that_is_taken_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner answers, and was once taken for Ray's head, which nobody could then reach."""
    monkeypatch.setattr("data_pipeline.job_ray._LEAVE_SECONDS", 1.0)
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        port = stranger.getsockname()[1]
        step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "MASTER_ADDR": "127.0.0.1"}
        for name, value in {**step, "MASTER_PORT": str(port)}.items():
            monkeypatch.setenv(name, value)
        taken = f"127.0.0.1:{port}: the port is another program's"
        with pytest.raises(Unavailable, match=taken), job_ray():
            raise AssertionError("Ray began")


def test_several_processes_must_know_where_they_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match="one of 2 processes: MASTER_ADDR and MASTER_PORT are not"):
        serve_job()
    with pytest.raises(UserError, match="one of 2 processes"), job_ray():
        pass


def test_alone_nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert not serve_job()
    with job_ray():
        pass


def test_who_has_a_cluster_of_his_own_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """--ray-address: then the step's other processes would be of no use, and are not asked."""
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert not serve_job("10.0.0.1:6379")
    with job_ray("10.0.0.1:6379"):
        pass
