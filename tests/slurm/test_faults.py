"""A CLIP on two nodes of a real Slurm, under all that a cluster does to jobs: not a bit is lost."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from launches import jobs, log_of, pipeline, unclip, wait_done, weights
from slurm_jobs import state, submit, wait, wait_for

from slurm.runs import RunFiles
from slurm.testbed.cluster import Cluster
from slurm.testbed.config import HIGH, LOW

pytestmark = pytest.mark.slurm

SAMPLES = 4096
LONG = 8192  # more than a minute of training, here


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    unclip("data", "synth", folder / "scenes", "--count", 64, "--seed", 3)
    unclip("data", "prepare", folder / "scenes", "--out", folder / "dataset")
    return folder / "dataset"


@pytest.fixture(scope="module")
def calm(cluster: Cluster, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of a run that nothing befalls."""
    folder = tmp_path_factory.mktemp("calm")
    path = pipeline(folder, samples=SAMPLES, data=str(dataset))
    wait_done(path, jobs(path, cluster), cluster)
    return weights(folder)


@pytest.fixture
def begun(cluster: Cluster, dataset: Path, tmp_path: Path) -> Callable[..., tuple[Path, str]]:
    """Launches a run, and gives pipeline and job when it has a checkpoint."""

    def begin(**resources: object) -> tuple[Path, str]:
        path = pipeline(tmp_path, samples=SAMPLES, data=str(dataset), resources=resources)
        job = jobs(path, cluster)["clip"]
        run = RunFiles(tmp_path / "run/clip")
        wait(lambda: run.samples() > 0, "a checkpoint", 240)
        return path, job

    return begin


def ends_as(calm: bytes, path: Path, job: str, cluster: Cluster, seconds: float = 240) -> RunFiles:
    """Waits for the end, compares every bit, and gives the RUN."""
    wait_done(path, {"clip": job}, cluster, seconds)
    assert weights(path.parent) == calm
    return RunFiles(path.parent / "run/clip")


def named(run: RunFiles, event: str) -> int:
    return sum(each["event"] == event for each in run.events())


def requeues(run: RunFiles) -> list[int]:
    return [each["code"] for each in run.events() if each["event"] == "requeued"]


def test_a_partition_that_preempts(
    cluster: Cluster, calm: bytes, begun: Callable[..., tuple[Path, str]], tmp_path: Path
) -> None:
    """The low partition's job is told, saves, gives its nodes away, and goes on after the other."""
    path, job = begun(partition=LOW)
    whole = ("--nodes=2", "--exclusive", f"--partition={HIGH}")
    other = submit(cluster, tmp_path, "other", "sleep 3", *whole)
    wait_for(cluster, other, "RUNNING", "COMPLETED")
    run = ends_as(calm, path, job, cluster)
    assert state(cluster, other) == "COMPLETED"
    (cost,) = run.preemptions()
    assert 0 < cost.lost < 120
    assert cost.queued > 2
    assert str(cost) in log_of(path, "clip", cluster)
    shown = unclip("launch", path, "--status", cluster=cluster)
    assert f"{cost.lost:.0f} s" in shown


def test_ranks_that_are_killed(
    cluster: Cluster, calm: bytes, begun: Callable[..., tuple[Path, str]]
) -> None:
    """One of two, whereupon the other is ended; then both. They go on from the last checkpoint."""
    path, job = begun()
    run = RunFiles(path.parent / "run/clip")
    os.kill(trainer_on(cluster, "n2"), signal.SIGKILL)
    wait(lambda: named(run, "first step") == 2, "another session's first step", 240)
    assert len(requeues(run)) == 1
    cluster.run("scancel", "--signal=KILL", f"{job}.0")
    ends_as(calm, path, job, cluster)
    assert len(requeues(run)) == 2
    assert run.preemptions() == []
    assert "broke down with " in log_of(path, "clip", cluster)


def test_a_controller_that_is_restarted(
    cluster: Cluster, calm: bytes, begun: Callable[..., tuple[Path, str]]
) -> None:
    """The job goes on without it; afterwards a signal is still answered by one requeue."""
    path, job = begun()
    cluster.kill_controller()
    cluster.start_controller()
    cluster.run("scancel", "--signal=USR2", job)
    assert requeues(ends_as(calm, path, job, cluster)) == [75]


@pytest.mark.timeout(900)
def test_a_time_limit(cluster: Cluster, dataset: Path, tmp_path: Path) -> None:
    """A minute is too short for the run: it saves before, and goes on in another minute."""
    samples, minute = LONG, {"time": "1", "signal_delay_s": 10}
    limited = pipeline(tmp_path / "limited", samples=samples, data=str(dataset), resources=minute)
    free = pipeline(tmp_path / "free", samples=samples, data=str(dataset))
    found = {path: jobs(path, cluster) for path in (limited, free)}  # both: each is slower so
    wait_done(free, found[free], cluster)
    # On a busy machine most of a minute is the start.
    run = ends_as(weights(free.parent), limited, found[limited]["clip"], cluster, 420)
    assert 75 in requeues(run)  # on a busy machine there may be stops before the first step too
    assert requeues(RunFiles(free.parent / "run/clip")) == []


def test_a_node_that_is_lost_and_comes_back(
    cluster: Cluster, calm: bytes, begun: Callable[..., tuple[Path, str]]
) -> None:
    """The job waits for it, and goes on from the last checkpoint on as many nodes."""
    path, job = begun()
    run = RunFiles(path.parent / "run/clip")
    cluster.kill_node("n2")
    try:
        wait(lambda: "down" in cluster.status().nodes["n2"], "the node to be missed", 60)
    finally:
        cluster.start_node("n2")
    ends_as(calm, path, job, cluster)
    assert named(run, "first step") == 2


def test_a_node_that_is_lost_is_done_without(
    cluster: Cluster, begun: Callable[..., tuple[Path, str]]
) -> None:
    """Slurm requeues the job; on the one node that is left it goes on from the last checkpoint."""
    path, job = begun(min_nodes=1)
    run = RunFiles(path.parent / "run/clip")
    cluster.kill_node("n2")
    try:
        wait_done(path, {"clip": job}, cluster)
    finally:
        cluster.start_node("n2")
    begins = [
        (each["samples"], each["ranks"]) for each in run.events() if each["event"] == "begins"
    ]
    assert begins[0] == (0, 2)
    assert begins[-1][0] > 0
    assert begins[-1][1] == 1
    assert run.samples() == SAMPLES


def trainer_on(cluster: Cluster, node: str) -> int:
    """The pid of the training process on a node."""
    marks = {f"SLURM_CLUSTER_NAME={cluster.layout.cluster}", f"SLURMD_NODENAME={node}"}
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_text().split("\0")
            environment = set((entry / "environ").read_text().split("\0"))
        except OSError:
            continue
        if words[1:4] == ["-m", "trainer", "train"] and marks <= environment:
            return int(entry.name)
    raise AssertionError(f"no trainer on {node}")
