"""A real Slurm on this machine: jobs, requeues, preemption, losses, and what is left at the end."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_jobs import history, node_of, state, submit, wait, wait_for

from base.errors import UserError
from slurm.testbed import cluster as module
from slurm.testbed.cluster import Cluster, running
from slurm.testbed.node_processes import node_processes
from slurm.testbed.record import read_record
from slurm.testbed.shape import Shape

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).resolve().parents[3]
ONE = Shape(nodes=1)
FOREVER = "srun sleep 600"


@pytest.fixture(scope="module")
def bed(short_tmp: Path) -> Path:
    """A folder for testbeds of one test each, which has a database after the first."""
    return Path(tempfile.mkdtemp(dir=short_tmp))


@pytest.fixture
def folder(slurm_installed: None, bed: Path) -> Iterator[Path]:
    """The folder, in which nothing is up; the test fails when it leaves anything running."""
    yield bed
    if left := left_of(bed):
        Cluster(bed).down()
    assert left == []


def left_of(folder: Path) -> list[str]:
    """Processes that have to do with the folder: by command, environment or open files."""
    return [
        f"{entry.name} {(entry / 'comm').read_text().strip()}"
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and int(entry.name) != os.getpid() and str(folder) in about(entry)
    ]


def about(process: Path) -> str:
    try:
        texts = [(process / name).read_text(errors="replace") for name in ("cmdline", "environ")]
        return "\n".join(texts + [os.readlink(link) for link in (process / "fd").iterdir()])
    except OSError:
        return ""  # it ended meanwhile


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "slurm.testbed", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_job_of_two_nodes_runs_on_both(cluster: Cluster, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, "both", "srun printenv SLURMD_NODENAME", "--nodes=2")
    wait_for(cluster, job, "COMPLETED")
    assert sorted((tmp_path / "both.out").read_text().split()) == ["n1", "n2"]
    wait(lambda: history(cluster, job) == ["COMPLETED"], "sacct")


def test_nodes_are_as_large_as_they_say(cluster: Cluster, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, "large", "true", "--cpus-per-task=4", "--mem=16000")
    wait_for(cluster, job, "COMPLETED")
    for option in ("--cpus-per-task=5", "--mem=16001", "--nodes=3", "--partition=none"):
        with pytest.raises(UserError, match=r"sbatch .*error: "):
            submit(cluster, tmp_path, "larger", "true", option)


def test_an_exit_code_asks_for_a_requeue(cluster: Cluster, tmp_path: Path) -> None:
    script = 'echo "run ${SLURM_RESTART_COUNT:-0}"; [ -n "$SLURM_RESTART_COUNT" ] || exit 99'
    job = submit(cluster, tmp_path, "again", script)
    wait_for(cluster, job, "COMPLETED")
    assert (tmp_path / "again.out").read_text() == "run 0\nrun 1\n"
    wait(lambda: history(cluster, job) == ["REQUEUED", "COMPLETED"], "sacct")


def test_the_high_partition_signals_and_requeues_the_low(cluster: Cluster, tmp_path: Path) -> None:
    script = """
[ -z "$SLURM_RESTART_COUNT" ] || exit 0
srun bash -c 'trap "touch told.$SLURMD_NODENAME" USR2
    touch ready.$SLURMD_NODENAME; while :; do sleep 0.2; done'"""
    low = submit(cluster, tmp_path, "low", script, "--nodes=2", "--time=10", "--signal=USR2@60")
    wait(lambda: len(list(tmp_path.glob("ready.*"))) == 2, "traps")
    high = submit(cluster, tmp_path, "high", "true", "--partition=high", "--nodes=2", "--exclusive")
    wait(lambda: len(list(tmp_path.glob("told.*"))) == 2, "signals")
    wait_for(cluster, high, "COMPLETED")
    wait_for(cluster, low, "COMPLETED")
    wait(lambda: history(cluster, low) == ["PREEMPTED", "COMPLETED"], "sacct")


def steps(cluster: Cluster) -> set[str]:
    """The nodes on which tasks run."""
    return {name for name in ("n1", "n2") if "sleep" in commands(cluster, name)}


def commands(cluster: Cluster, node: str) -> set[str]:
    found = (Path(f"/proc/{process.pid}/comm") for process in node_processes(cluster.layout, node))
    return {path.read_text().strip() for path in found if path.exists()}


def test_a_lost_nodes_job_begins_again_on_the_other(cluster: Cluster, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, "lost", f"setsid sleep 600 & {FOREVER}", "--requeue")
    wait_for(cluster, job, "RUNNING")
    lost = node_of(cluster, job)
    wait(lambda: "sleep" in commands(cluster, lost), "tasks")
    cluster.kill_node(lost)
    try:
        assert node_processes(cluster.layout, lost) == []
        wait(lambda: cluster.status().nodes.get(lost, "").startswith("down"), "down")
        wait_for(cluster, job, "RUNNING")
        assert {lost, node_of(cluster, job)} == {"n1", "n2"}
        assert not cluster.status().up
    finally:
        cluster.start_node(lost)
    cluster.run("scancel", job)
    wait_for(cluster, job, "CANCELLED")
    assert cluster.status().up
    wait(lambda: history(cluster, job)[:1] == ["NODE_FAIL"], "sacct")


def test_jobs_go_on_while_the_controller_is_away(cluster: Cluster, tmp_path: Path) -> None:
    script = "srun --nodes=2 bash -c 'while [ ! -e over ]; do sleep 0.2; done'"
    job = submit(cluster, tmp_path, "goes-on", script, "--nodes=2")
    wait(lambda: len(steps(cluster)) == 2, "steps")
    submitted = time.time()
    wait(lambda: (cluster.layout.state / "job_state").stat().st_mtime > submitted, "saved")
    cluster.kill_controller()
    wait(lambda: len(steps(cluster)) == 2, "steps")
    cluster.start_controller()
    assert state(cluster, job) == "RUNNING"
    (tmp_path / "over").touch()
    wait_for(cluster, job, "COMPLETED")


def test_two_are_beside_each_other_and_one_goes_on_from_its_files(
    folder: Path, cluster: Cluster, tmp_path: Path
) -> None:
    with running(folder, ONE) as other:
        assert not other.up(ONE)
        job = submit(other, tmp_path, "one", "hostname")
        wait_for(other, job, "COMPLETED")
        with pytest.raises(UserError, match="up with 1 nodes"):
            other.up(Shape(nodes=2))
        assert cluster.status().up
    assert not other.down()
    assert other.status().nodes == {}
    with running(folder, ONE) as again:
        wait(lambda: "COMPLETED" in history(again, job), "sacct")
    assert cluster.status().up


def test_down_ends_what_is_left_of_half_a_testbed(folder: Path, tmp_path: Path) -> None:
    cluster = Cluster(folder)
    cluster.up(Shape(nodes=2))
    submit(cluster, tmp_path, "left", f"setsid sleep 600 & {FOREVER}", "--nodes=2")
    wait(lambda: len(steps(cluster)) == 2, "steps")
    pids = cluster.status().daemons
    killed = ("slurmctld", "mariadbd", "n1")
    for name in killed:
        os.kill(pids[name] or 0, signal.SIGKILL)
    wait(lambda: not any(cluster.status().daemons[name] for name in killed), "ends")
    with pytest.raises(UserError, match="half up, without mariadbd, slurmctld, n1; down it"):
        cluster.up(Shape(nodes=2))
    assert command("status", "--dir", str(folder)).stdout.startswith(f"{folder}: half up\n")
    assert cluster.down()


def test_a_daemon_that_cannot_start_is_named_and_nothing_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        ports = {"slurmctld": taken.getsockname()[1]}
        real = module.free_ports
        monkeypatch.setattr(module, "free_ports", lambda names: {**real(names), **ports})
        with pytest.raises(UserError, match=r"slurmctld ended at once; .*slurmctld\.out: .*in use"):
            Cluster(folder).up(ONE)
    assert not Cluster(folder).status().up


def is_recorded(folder: Path, daemon: str) -> bool:
    """Whether the daemon is written down and runs."""
    layout = Cluster(folder).layout
    return layout.record.exists() and daemon in read_record(layout).alive


def test_up_that_is_interrupted_leaves_nothing(folder: Path) -> None:
    starting = subprocess.Popen(
        [sys.executable, "-m", "slurm.testbed", "up", "--dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
    )
    wait(lambda: is_recorded(folder, "slurmdbd"), "slurmdbd")
    starting.send_signal(signal.SIGINT)
    starting.communicate(timeout=60)
    assert starting.returncode == 130
    assert left_of(folder) == []


def test_down_ends_what_an_up_that_was_killed_had_begun(folder: Path) -> None:
    arguments = ("up", "--nodes", "1", "--dir", str(folder))
    starting = subprocess.Popen(
        [sys.executable, "-m", "slurm.testbed", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    wait(lambda: is_recorded(folder, "mariadbd"), "mariadbd")
    starting.kill()
    starting.wait()
    assert left_of(folder) != []
    assert re.search(r"half up, without .*n1; down it first\n$", command(*arguments).stderr)
    assert Cluster(folder).down()


def test_the_commands_say_what_they_did(folder: Path) -> None:
    up = command("up", "--nodes", "1", "--dir", str(folder))
    try:
        assert (up.returncode, up.stdout) == (0, f"export SLURM_CONF={folder}/slurm.conf\n")
        assert "up, 1 nodes" in up.stderr
        assert "up already" in command("up", "--nodes", "1", "--dir", str(folder)).stderr
        found = json.loads(command("status", "--json", "--dir", str(folder)).stdout)
        assert (found["up"], found["nodes"]) == (True, {"n1": "idle"})
    finally:
        assert command("down", "--dir", str(folder)).stderr == f"{folder}: down\n"
    assert command("down", "--dir", str(folder)).stderr == f"{folder}: down already\n"
    lines = command("status", "--dir", str(folder)).stdout.splitlines()
    assert (lines[0], lines[-1].split()) == (f"{folder}: down", ["n1", "does", "not", "run"])
    nowhere = command("status", "--dir", f"{folder}-2")
    assert (nowhere.returncode, nowhere.stderr) == (2, f"error: {folder}-2: no testbed is there\n")
