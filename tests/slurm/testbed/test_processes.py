"""Processes that are known again, and no others, and that end for certain."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from base.errors import UserError
from slurm.testbed import packages
from slurm.testbed.layout import Layout
from slurm.testbed.node_processes import kill_all, node_processes
from slurm.testbed.ports import answers, free_ports
from slurm.testbed.processes import Process, end, spawn
from slurm.testbed.record import Record, locked, read_record, write_record
from slurm.testbed.shape import Shape

SLEEP = ["/bin/sleep", "600"]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "bed")
    layout.make()
    return layout


def started(command: list[str], folder: Path) -> Process:
    return spawn(command, os.environ, folder / "out", lambda process: None)


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[Process]:
    process = started(SLEEP, tmp_path)
    yield process
    end([process], patience=0)


def stubborn(folder: Path) -> Process:
    """A process that ignores SIGTERM, and does so already."""
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('', flush=True)"
    process = started([sys.executable, "-c", f"{code}; time.sleep(600)"], folder)
    while not (folder / "out").read_text():
        assert process.alive
    return process


def test_ends_what_it_is_given(sleeper: Process) -> None:
    assert sleeper.alive
    assert end([sleeper], patience=5) == []
    assert not sleeper.alive


def test_ends_what_does_not_listen(tmp_path: Path) -> None:
    process = stubborn(tmp_path)
    assert end([process], patience=0.2) == []
    assert not process.alive


def test_leaves_alone_who_has_the_pid_now(sleeper: Process) -> None:
    earlier = Process(sleeper.pid, "1")
    assert not earlier.alive
    assert end([earlier], patience=0) == []
    assert sleeper.alive


def test_a_process_that_never_was_is_not_alive() -> None:
    assert not Process(2**22 + 1, "").alive


def test_prints_to_its_file_with_signals_as_they_were(tmp_path: Path) -> None:
    code = "import signal; print(signal.getsignal(signal.SIGHUP) is signal.SIG_DFL)"
    process = started([sys.executable, "-c", code], tmp_path)
    while process.alive:
        pass
    assert (tmp_path / "out").read_text() == "True\n"


def test_nothing_runs_that_is_not_recorded(tmp_path: Path) -> None:
    seen = []

    def interrupted(process: Process) -> None:
        seen.append(process)
        time.sleep(0.5)
        raise KeyboardInterrupt

    touch = ["/usr/bin/touch", str(tmp_path / "began")]
    with pytest.raises(KeyboardInterrupt):
        spawn(touch, os.environ, tmp_path / "out", interrupted)
    while seen[0].alive:
        pass
    assert not (tmp_path / "began").exists()


def test_jobs_are_known_by_cluster_and_node_and_take_their_children_along(layout: Layout) -> None:
    marks = {"SLURM_CLUSTER_NAME": layout.cluster, "SLURMD_NODENAME": "n1"}
    code = f"import subprocess; subprocess.run({SLEEP}, env={{}})"
    task = subprocess.Popen([sys.executable, "-c", code], env=marks)
    elsewhere = subprocess.Popen(SLEEP, env={**marks, "SLURMD_NODENAME": "n2"})
    other = subprocess.Popen(SLEEP, env={**marks, "SLURM_CLUSTER_NAME": "tb0"})
    try:
        while len(found := node_processes(layout, "n1")) < 2:
            assert task.poll() is None
        assert found[0].pid == task.pid
        assert kill_all(layout, "n1") == []
        assert not any(process.alive for process in found)
        assert (elsewhere.poll(), other.poll()) == (None, None)
    finally:
        for process in (task, elsewhere, other):
            process.kill()
            process.wait()


def test_the_record_is_read_as_it_was_written(layout: Layout, sleeper: Process) -> None:
    record = Record(Shape(nodes=1), {"n1": 20001}).having("munged", sleeper)
    record = record.having("n1", Process(sleeper.pid, "1"))
    write_record(layout, record)
    assert read_record(layout) == record
    assert record.alive == {"munged": sleeper}


def test_a_record_that_is_none_is_refused(layout: Layout) -> None:
    layout.record.write_text('{"shape": {}}')
    with pytest.raises(UserError, match="not what `up` writes there"):
        read_record(layout)


def test_two_at_once_are_refused(layout: Layout) -> None:
    with (
        locked(layout),
        pytest.raises(UserError, match="another up or down is at work"),
        locked(layout),
    ):
        raise AssertionError("both")


def test_ports_are_free_and_differ() -> None:
    ports = free_ports(["a", "b", "c"])
    assert len(set(ports.values())) == 3
    assert not any(answers(port) for port in ports.values())


def test_without_the_packages_one_line_says_how_to_get_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packages, "find", lambda name: None if name == "slurmdbd" else "/x")
    monkeypatch.setattr(packages.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(packages.shutil, "which", lambda name: "/usr/bin/apt-get")
    with pytest.raises(UserError, match=r"not installed: slurmdbd; as root: apt-get .*dbd"):
        packages.require_packages()
    monkeypatch.setattr(packages.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="this is no Debian"):
        packages.require_packages()
