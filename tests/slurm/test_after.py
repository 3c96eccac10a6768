"""The end of a batch script, with a stand-in for scontrol that tells what it was asked."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slurm.runs import RunFiles

ROOT = Path(__file__).resolve().parents[2]

SCONTROL = """\
#!/bin/sh
case "$*" in
*show*) {shows}; echo "JobId=17 JobState={state} StartTime=1000 EndTime=Unknown" ;;
*) echo "$@" >> {asked}; {then} ;;
esac
"""


def after(
    folder: Path,
    *words: object,
    state: str = "RUNNING",
    then: str = "kill $PPID",
    shows: str = ":",
) -> str:
    """What scontrol was asked for; the command's end is that of the job where it was."""
    asked, program = folder / "asked", folder / "bin/scontrol"
    program.parent.mkdir(exist_ok=True)
    asked.unlink(missing_ok=True)
    program.write_text(SCONTROL.format(state=state, asked=asked, then=then, shows=shows))
    program.chmod(0o755)
    where = f"{program.parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": where, "SLURM_JOB_ID": "17", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "slurm.after", *map(str, words)],
        env={**environment, "SLURM_RESTART_COUNT": "0"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    told = asked.read_text() if asked.exists() else ""
    if not told:
        assert done.returncode == words[0]
    return told + done.stderr


def run_at(folder: Path, samples: int) -> Path:
    run = folder / "run"
    run.mkdir(exist_ok=True)
    (run / "latest").write_text(f"{samples:012}\n")
    return run


@pytest.mark.parametrize("code", [75, 1, 137])
def test_what_saved_and_what_broke_down_is_run_again(tmp_path: Path, code: int) -> None:
    run = run_at(tmp_path, 64)
    assert after(tmp_path, code, run).startswith("requeue 17\n")
    (event,) = RunFiles(run).events()
    assert (event["event"], event["samples"], event["code"]) == ("requeued", 64, code)
    assert abs(event["time"] - time.time()) < 60


@pytest.mark.parametrize("code", [0, 2, 3, 4, 130])
def test_what_would_end_so_again_is_left(tmp_path: Path, code: int) -> None:
    assert after(tmp_path, code, run_at(tmp_path, 64)) == ""


@pytest.mark.parametrize("state", ["CANCELLED", "COMPLETING", "PREEMPTED", "TIMEOUT"])
def test_a_job_that_is_being_ended_is_left(tmp_path: Path, state: str) -> None:
    """A user's scancel, or a preemption after which Slurm requeues by itself."""
    assert after(tmp_path, 75, run_at(tmp_path, 64), state=state) == ""


def test_restarts_without_a_step_come_to_an_end(tmp_path: Path) -> None:
    for samples in (64, 128, 128, 128):
        assert "requeue 17" in after(tmp_path, 75, run_at(tmp_path, samples))
    told = after(tmp_path, 75, run_at(tmp_path, 128))
    assert told.startswith("error: 3 restarts at 128 samples without a step more")
    assert "requeue 17" in after(tmp_path, 75, run_at(tmp_path, 192))


@pytest.mark.parametrize("asked", ["show", "requeue"])
def test_a_controller_that_is_away_is_asked_again(tmp_path: Path, asked: str) -> None:
    away = f"[ -e {tmp_path}/again ] || {{ touch {tmp_path}/again; exit 1; }}"
    shows, then = (away, "kill $PPID") if asked == "show" else (":", f"{away}; kill $PPID")
    told = after(tmp_path, 75, run_at(tmp_path, 64), then=then, shows=shows)
    assert told.count("requeue 17\n") == (1 if asked == "show" else 2)


def test_a_dataset_has_no_samples_to_count(tmp_path: Path) -> None:
    assert after(tmp_path, 75) == "requeue 17\nsaved; job 17 is requeued and goes on\n"
