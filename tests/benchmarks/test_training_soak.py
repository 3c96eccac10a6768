"""A soak that cannot be done comes to an end all the same, and leaves no process."""

import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.training_soak import __main__ as soak

MOST = 0.02  # minutes
ENDLESS = [sys.executable, "-c", "import time; time.sleep(3600)"]
PARENT = [sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:])", *ENDLESS]


@pytest.mark.parametrize("command", [PARENT, [sys.executable, "-c", "raise SystemExit(1)"]])
def test_a_run_under_faults_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    """One that hangs, and one that fails whenever it is started."""
    monkeypatch.setattr(soak, "command", lambda *_: command)
    with pytest.raises(SystemExit, match=r"not done after 0\.02 minutes; see .*log"):
        soak.disturbed(tmp_path, tmp_path, 1, tmp_path / "log", 0, 60.0, 0.0, MOST)
    assert_no_child()


def test_a_quiet_run_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "command", lambda *_: PARENT)
    with pytest.raises(SystemExit, match=r"not done after 0\.02 minutes"):
        soak.quiet(tmp_path, tmp_path, 1, tmp_path / "log", MOST)
    assert_no_child()


def assert_no_child() -> None:
    """Of the endless ones; an ended one may not be reaped yet."""
    end = time.monotonic() + 60
    while [child for child in psutil.Process().children(recursive=True) if endless(child)]:
        assert time.monotonic() < end
        time.sleep(0.05)


def endless(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and "time.sleep(3600)" in str(
            process.cmdline()
        )
    except psutil.NoSuchProcess:
        return False
