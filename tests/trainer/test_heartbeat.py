"""Who hangs is named with host and process, and leaves its stack; who lags is in the metrics."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
import straggling
import toy
from processes import ROOT, environment

from base.files import _size
from trainer.checkpoint.folders import complete_checkpoints
from trainer.engine.base import Engine
from trainer.guards import disk, watch
from trainer.guards.heartbeat import Beat, beat_path, stack_path
from trainer.guards.stragglers import Stragglers, slow_path
from trainer.guards.watch import Watch
from trainer.loader import steps
from trainer.loop import train


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def write(run: Path, rank: int, samples: int, phase: str, seconds: float, at: float) -> None:
    path = beat_path(run, rank)
    path.parent.mkdir(exist_ok=True)
    values = {"rank": rank, "host": f"node{rank}", "pid": 7, "samples": samples, "phase": phase}
    path.write_text(json.dumps({**values, "seconds": seconds, "waited": 0.0, "time": at}))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watch, "time", clock)
    return clock


def test_a_silent_rank_is_named_and_those_that_wait_for_it_are_not(
    tmp_path: Path, clock: Clock
) -> None:
    said: list[str] = []
    watcher = Watch(tmp_path, 3, 10.0, said.append)
    for clock.now in range(0, 28, 2):
        for rank in (0, 2):
            write(tmp_path, rank, 48, "step", max(clock.now - 6, 0), clock.now)
        if clock.now < 8:
            write(tmp_path, 1, 48, "step", 0, clock.now)
        watcher.look()
    assert said == ["rank 1 on host node1, pid 7, at 48 samples is silent for 12 s"]


def test_of_ranks_that_do_not_move_the_one_behind_is_named(tmp_path: Path, clock: Clock) -> None:
    said: list[str] = []
    watcher = Watch(tmp_path, 3, 10.0, said.append)
    for clock.now in range(0, 20, 2):
        for rank, phase in enumerate(("step", "loader", "step")):
            write(tmp_path, rank, 48, phase, clock.now, clock.now)
        watcher.look()
    assert said == [
        "rank 1 on host node1, pid 7, at 48 samples is in the loader for 12 s; "
        "stacks are in heartbeats/rank_00001.stack.txt"
    ]


def test_a_rank_that_never_began_is_named(tmp_path: Path, clock: Clock) -> None:
    said: list[str] = []
    watcher = Watch(tmp_path, 2, 10.0, said.append)
    for clock.now in (0, 6, 12):
        write(tmp_path, 0, 0, "loader", 0, clock.now)
        watcher.look()
    assert said == ["rank 1, which has not begun, is silent for 12 s"]


def test_who_was_stopped_itself_accuses_nobody(tmp_path: Path, clock: Clock) -> None:
    said: list[str] = []
    watcher = Watch(tmp_path, 2, 10.0, said.append)
    for clock.now in (0, 2, 4, 40, 42):
        for rank in (0, 1):
            write(tmp_path, rank, 48, "step", 1, min(clock.now, 4))
        watcher.look()
    assert said == []
    for clock.now in (44, 46, 48, 51):
        watcher.look()
    assert len(said) == 2


def test_the_second_rank_names_the_first_when_it_is_silent_and_never_else(
    tmp_path: Path, clock: Clock
) -> None:
    said: list[str] = []
    watcher = Watch(tmp_path, 1, 10.0, said.append, silent=True)
    for clock.now in range(0, 40, 2):
        write(tmp_path, 0, 48, "step", min(clock.now, 20), min(clock.now, 20))
        watcher.look()
    assert said == ["rank 0 on host node0, pid 7, at 48 samples is silent for 12 s"]


class Three:
    """What stragglers ask of an engine."""

    rank, world_size = 1, 3

    def gather(self, value: str) -> list[str]:
        return [f"{value}{rank}" for rank in range(3)]


def test_a_straggler_is_in_the_metrics(tmp_path: Path) -> None:
    stragglers = Stragglers(cast(Engine, Three()), tmp_path)
    assert stragglers.own(2.5) == [0.0, 2.5, 0.0]
    for _ in range(4):
        stragglers.add([0.1, 0.25, 0.12, 99.0])
    host = f"{socket.gethostname()}1"
    assert stragglers.take() == {"stragglers": [{"rank": 1, "host": host, "seconds": 0.25}]}
    stragglers.add([0.001, 0.004, 0.001])  # nobody waits for three milliseconds
    assert stragglers.take() == {}


def test_a_straggler_leaves_its_stack_once(tmp_path: Path) -> None:
    """Of a step that takes long; not of one that does not, and not of other ranks'."""
    path = slow_path(tmp_path, 1)
    path.parent.mkdir()
    with Stragglers(cast(Engine, Three()), tmp_path) as stragglers:

        def step(seconds: list[float]) -> None:
            stragglers.add(seconds)
            stragglers.take()
            stragglers.watch()

        step([9.0, 0.1, 0.1])
        assert not path.exists()
        step([0.1, 3600.0, 0.1])
        stragglers.stop_watching()  # a quick one
        assert not path.exists()
        step([0.001, 0.1, 0.001])
        in_the_step_for(lambda: path.exists() and "Thread" in path.read_text())
        stragglers.stop_watching()
        text = path.read_text()
        assert text.startswith("in a step of this rank's own after 0.051 s\n")
        assert "in in_the_step_for" in text
        path.unlink()
        step([0.001, 0.1, 0.001])
        time.sleep(0.2)
        assert not path.exists()  # it has told
    before = threading.active_count()
    with Stragglers(cast(Engine, Three()), tmp_path) as stragglers:
        step([0.1, 3600.0, 0.1])
        assert threading.active_count() == before + 1
    assert threading.active_count() == before  # the run's end does not wait for a step's
    assert not path.exists()


def test_stacks_of_a_step_at_work_do_not_end_it(tmp_path: Path) -> None:
    """faulthandler.dump_traceback_later did: it reads frames while they run."""
    command = [sys.executable, straggling.__file__, str(tmp_path)]
    run = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert int(run.stdout) > straggling.TIMES / 2


def in_the_step_for(look: Any) -> None:
    wait_for(look, "stack")


def test_a_rank_that_hangs_in_the_loader_leaves_its_stack(
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    following = steps._Thread.__next__
    run, asked = tmp_path / "run", list[int]()

    def slow(self: steps._Thread) -> Any:
        asked.append(0)
        if len(asked) == 4:
            wait_for(lambda: has_hung(run), "beat of a rank that hangs, and its stack")
        return following(self)

    monkeypatch.setattr(steps._Thread, "__next__", slow)
    train(toy.toy_config(dataset, run, guards={"hang_after_s": 2.0}))
    said = capsys.readouterr().err
    assert f"rank 0 on host {socket.gethostname()}, pid {os.getpid()}, at 24 samples" in said
    assert said.count("is in the loader for") == 1
    stack = (run / "heartbeats/rank_00000.stack.txt").read_text()
    assert stack.startswith("in loader at 24 samples for more than 2 s\n")
    assert "in slow" in stack
    assert [path.name for path in (run / "heartbeats").iterdir()] == ["rank_00000.stack.txt"]


def has_hung(run: Path) -> bool:
    """For longer than its patience, by its own beat; who reads that, reads it then, too."""
    beat = read_beat(run, 0)
    stack = stack_path(run, 0)
    told = stack.exists() and "in slow" in stack.read_text()
    return told and beat is not None and beat.seconds > 2


def test_a_run_that_ends_leaves_no_heartbeat(dataset: Path, tmp_path: Path) -> None:
    train(toy.toy_config(dataset, tmp_path / "run"))
    assert not (tmp_path / "run/heartbeats").exists()


def test_a_stopped_rank_is_named_with_its_host(
    deepspeed_ready: None, dataset: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    how = {"samples": 10**6, "engine": "deepspeed"}
    path = toy.write_toy_config(
        tmp_path / "a.yaml", dataset, run, train=how, guards={"hang_after_s": 6.0}
    )
    log = tmp_path / "log"
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *command, toy.__file__, "train", str(path)],
            cwd=ROOT,
            env=environment(),
            stderr=file,
        )
    try:
        beat = wait_for(lambda: read_beat(run, 1), "samples")
        os.kill(beat.pid, signal.SIGSTOP)
        try:
            expected = f"rank 1 on host {socket.gethostname()}, pid {beat.pid}, at "
            wait_for(lambda: expected in log.read_text(), "the name")
        finally:
            os.kill(beat.pid, signal.SIGCONT)
        named = [line for line in log.read_text().splitlines() if "is silent for" in line]
        assert [line for line in named if expected not in line] == []
        first = wait_for(lambda: read_beat(run, 0), "samples")
        os.kill(first.pid, signal.SIGSTOP)  # whom the second rank looks after
        try:
            told = f"rank 0 on host {socket.gethostname()}, pid {first.pid}, at "
            wait_for(lambda: told in log.read_text(), "the name of the first")
        finally:
            os.kill(first.pid, signal.SIGCONT)
        process.send_signal(signal.SIGUSR2)  # of which torchrun dies; its ranks save and end
        assert process.wait(60) == -signal.SIGUSR2
        both = [beat.pid, first.pid]
        wait_for(lambda: not any(map(psutil.pid_exists, both)), "end of the ranks")
        assert complete_checkpoints(run)
        assert "stopped on request and saved" in log.read_text()
    finally:
        process.terminate()
        process.wait(60)


def read_beat(run: Path, rank: int) -> Beat | None:
    """A rank's beat once it has taken steps."""
    try:
        beat = Beat(**json.loads(beat_path(run, rank).read_bytes()))
    except (OSError, ValueError):
        return None
    return beat if beat.samples > 0 else None


def wait_for(look: Any, what: str) -> Any:
    end = time.monotonic() + 240  # a busy machine may first compile
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.2)
    raise AssertionError(f"no {what}")


def test_a_filling_disk_is_told_before_a_checkpoint_is_lost(
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=15_000)
    monkeypatch.setattr(disk, "_EVERY", 0.0)
    monkeypatch.setattr("base.files.shutil.disk_usage", lambda path: usage)
    monkeypatch.setattr("trainer.checkpoint.write.require_free_space", lambda *_: None)
    train(toy.toy_config(dataset, tmp_path / "run", objective={"delay": 0.05}))
    said = capsys.readouterr().err
    parameters = 8 + 2 * 8 * 24 + 24 * 3 + 8
    needed = _size(2 * 16 * parameters)
    assert said.count("room for less than 2 checkpoints is left") == 1
    assert f"needs {needed} of disk, 0.0 MB are free" in said
