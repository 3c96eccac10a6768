"""Tasks on a real Ray: order, bounds, late ones, and those that fail."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from base.errors import Stopped, UserError
from base.stop import StopFlag
from data_pipeline.cluster import run_bounded

LATE = 3.0  # seconds that a late task makes the others look quick


@ray.remote(max_retries=0)
def task(shard: int, log: Path) -> int:
    """Shard 5 is late the first time that it is tried: it waits for a file beside the log."""
    with log.open("a") as file:
        file.write(f"{shard}\n")
    first = log.read_text().split().count(str(shard)) == 1
    if shard == 5 and first:
        while not log.with_name("over").exists():
            time.sleep(0.1)
    if shard == 7:
        raise UserError("seven cannot be done")
    return shard * shard


def run(shards: list[int], log: Path, limit: int = 2) -> dict[int, Any]:
    with StopFlag() as stop:
        found = run_bounded(ray, lambda s: task.remote(s, log), shards, limit, stop, LATE)
        return dict(found)


def test_a_late_shard_is_begun_again_and_the_first_result_counts(
    ray_cluster: None, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    try:  # without the second attempt this would wait for ever
        assert run([5, 1, 2, 3], log) == {shard: shard * shard for shard in (1, 2, 3, 5)}
    finally:
        (tmp_path / "over").touch()
    assert sorted(log.read_text().split()) == ["1", "2", "3", "5", "5"]


def test_nothing_is_begun_twice_where_nothing_is_late(ray_cluster: None, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert sorted(run([1, 2, 3, 4, 6], log)) == [1, 2, 3, 4, 6]
    assert sorted(log.read_text().split()) == ["1", "2", "3", "4", "6"]


def test_nothing_is_cancelled(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray ends the process where a task that is being cancelled ends by itself."""

    def cancel(*_: object, **__: object) -> None:
        raise AssertionError("a task was cancelled")

    monkeypatch.setattr(ray, "cancel", cancel)
    log = tmp_path / "log"
    try:
        with StopFlag() as stop:
            found = run_bounded(ray, lambda s: task.remote(s, log), [5, 1, 2], 2, stop, LATE)
            assert next(found) == (1, 1)
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(Stopped):
                next(found)
    finally:
        (tmp_path / "over").touch()


def test_an_interrupt_while_ray_is_imported_is_kept(tmp_path: Path) -> None:
    """Where it would be lost is left to chance by Python; here the module drops it for certain."""
    (tmp_path / "ray.py").write_text(
        "import os, signal, time\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(0.1)\n"
        "except:\n"
        "    pass\n"
        "is_initialized = lambda: exit('it went on')\n"
    )
    script = "from data_pipeline.cluster import cluster\nwith cluster(): pass"
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.stderr.splitlines()[-1] == "KeyboardInterrupt"


def test_what_a_task_raises_comes_as_it_was_raised(ray_cluster: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^seven cannot be done$"):
        run([1, 7, 2], tmp_path / "log")
