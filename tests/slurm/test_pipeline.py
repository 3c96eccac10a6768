"""A pipeline on a real Slurm: two ranks on two nodes, signalled, requeued, failed, gone on with."""

import json
from pathlib import Path

import pytest
from launches import jobs, log_of, pipeline, unclip, wait_done, weights
from slurm_jobs import state, wait, wait_for

from slurm.testbed.cluster import Cluster

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    unclip("data", "synth", folder / "scenes", "--count", 64, "--seed", 3)
    return folder / "scenes"


@pytest.mark.parametrize("zero", [1, 2])
def test_a_signal_costs_a_requeue_and_not_a_bit(
    cluster: Cluster, pairs: Path, tmp_path: Path, zero: int
) -> None:
    """USR2 in mid-training: both ranks save together, the job runs again, and ends as if alone."""
    calm, hurt = tmp_path / "calm", tmp_path / "hurt"
    path = pipeline(calm, pairs, zero=zero)
    found = jobs(path, cluster)
    wait_done(path, found, cluster)
    path = pipeline(hurt, pairs, zero=zero)
    found = jobs(path, cluster)
    metrics = hurt / "run/clip/metrics.jsonl"
    wait(lambda: metrics.is_file() and metrics.read_text().count("\n") > 3, "some steps", 120)
    cluster.run("scancel", "--signal=USR2", found["clip"])
    wait_done(path, found, cluster)
    log = log_of(path, "clip", cluster)
    assert log.count(f"saved; job {found['clip']} is requeued and goes on at ") == 1
    assert log.count("preempted: ") == 1
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
