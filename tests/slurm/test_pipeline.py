"""A pipeline on a real Slurm: two ranks on two nodes, signalled, requeued, failed, gone on with."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from slurm_jobs import state, wait, wait_for

from base import yaml
from slurm.testbed.cluster import Cluster

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).resolve().parents[2]
SAMPLES, SIGNALLED = 1536, 256


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    unclip("data", "synth", folder / "scenes", "--count", 64, "--seed", 3)
    return folder / "scenes"


def unclip(*words: object, cluster: Cluster | None = None, code: int = 0) -> str:
    environment = {**os.environ, **({} if cluster is None else cluster.environment)}
    done = subprocess.run(
        [sys.executable, "-m", "unclip", *map(str, words)],
        env={**environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def pipeline(folder: Path, pairs: Path, samples: int = SAMPLES) -> Path:
    """A CLIP of two ranks on two nodes, on a DATASET that a job before it makes."""
    clip = ROOT / "configs/micro/clip.yaml"
    overrides = [f"train.samples={samples}", "train.checkpoint_every=512", "train.log_every=64"]
    overrides += ["train.engine=deepspeed", "train.zero_stage=1", "train.precision=fp32"]
    stages: dict[str, Any] = {
        "data": {"kind": "prepare", "inputs": [str(pairs)]},
        "clip": {
            "kind": "train",
            "config": str(clip),
            "data": ["stages.data"],
            "overrides": overrides,
            "resources": {"nodes": 2},
        },
    }
    path = folder / "pipeline.yaml"
    env = {"OMP_NUM_THREADS": "1"}
    resources = {"time": "00:15:00", "cpus_per_task": 1, "env": env}
    folder.mkdir(exist_ok=True)
    path.write_text(
        yaml.dump({"out": str(folder / "run"), "resources": resources, "stages": stages})
    )
    return path


def jobs(path: Path, cluster: Cluster) -> dict[str, str]:
    found: dict[str, str] = json.loads(unclip("launch", path, "--json", cluster=cluster))["jobs"]
    return found


def log_of(path: Path, stage: str, cluster: Cluster) -> str:
    return unclip("launch", path, "--logs", stage, cluster=cluster)


def wait_done(path: Path, found: dict[str, str], cluster: Cluster) -> None:
    def over() -> bool:
        shown = json.loads(unclip("launch", path, "--status", "--json", cluster=cluster))
        states = {stage["name"]: stage["state"] for stage in shown["stages"]}
        bad = {name for name, word in states.items() if word in ("FAILED", "TIMEOUT", "CANCELLED")}
        assert not bad, log_of(path, bad.pop(), cluster)
        return set(states.values()) == {"done"}

    wait(over, f"end of {found}", 240)


def weights(folder: Path) -> bytes:
    out = folder / "weights.safetensors"
    unclip("checkpoint", "export", folder / "run/clip", out, "--weights", "raw", "--replace")
    return out.read_bytes()


def test_a_signal_costs_a_requeue_and_not_a_bit(
    cluster: Cluster, pairs: Path, tmp_path: Path
) -> None:
    """USR2 in mid-training: both ranks save together, the job runs again, and ends as if alone."""
    calm, hurt = tmp_path / "calm", tmp_path / "hurt"
    path = pipeline(calm, pairs)
    found = jobs(path, cluster)
    wait_done(path, found, cluster)
    path = pipeline(hurt, pairs)
    found = jobs(path, cluster)
    metrics = hurt / "run/clip/metrics.jsonl"
    wait(lambda: metrics.is_file() and metrics.read_text().count("\n") > 3, "some steps", 120)
    cluster.run("scancel", "--signal=USR2", found["clip"])
    wait_done(path, found, cluster)
    log = log_of(path, "clip", cluster)
    assert log.count(f"job {found['clip']} is requeued") == 1
    assert "goes on at" in log
    assert weights(hurt) == weights(calm)


def test_dependants_of_a_failed_stage_wait_and_a_second_launch_does_the_rest(
    cluster: Cluster, pairs: Path, tmp_path: Path
) -> None:
    """What was made is not made again."""
    path = pipeline(tmp_path / "p", pairs, 128)
    broken = tmp_path / "p/run/clip"
    broken.parent.mkdir(parents=True)
    broken.write_text("a file where the RUN's folder is to be\n")
    first = jobs(path, cluster)
    wait_for(cluster, first["data"], "COMPLETED")
    wait_for(cluster, first["clip"], "FAILED", seconds=120)
    broken.unlink()
    second = jobs(path, cluster)
    assert set(second) == {"clip"}
    wait_done(path, second, cluster)
    assert state(cluster, first["data"]) == "COMPLETED"


def test_what_slurm_refuses_is_told_with_its_reason(
    cluster: Cluster, pairs: Path, tmp_path: Path
) -> None:
    path = pipeline(tmp_path / "p", pairs)
    for override, reason in (
        ("resources.partition=gpus", "invalid partition"),
        ("stages.clip.resources.mem_gb=9000", "Memory specification"),
    ):
        told = unclip("launch", path, "--set", override, cluster=cluster, code=2)
        assert reason.lower() in told.lower()
        assert "Slurm refuses it: " in told
        assert len([line for line in told.splitlines() if "error" in line]) == 1
    listed = cluster.run("squeue", "--noheader", "--format=%i")
    assert listed.strip() == ""  # what was submitted before the refusal is cancelled


def test_cancel_ends_all_jobs(cluster: Cluster, pairs: Path, tmp_path: Path) -> None:
    path = pipeline(tmp_path / "p", pairs)
    found = jobs(path, cluster)
    ended = json.loads(unclip("launch", path, "--cancel", "--json", cluster=cluster))["cancelled"]
    assert ended == found
    for job in found.values():
        wait_for(cluster, job, "CANCELLED")
