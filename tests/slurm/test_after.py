"""The end of a batch script, with a stand-in for scontrol that tells what it was asked."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from slurm.runs import RunFiles

ROOT = Path(__file__).resolve().parents[2]

SCONTROL = """\
#!/bin/sh
case "$*" in
*show*) {shows}
  echo "JobId=17 JobState={state} {times} StdOut={log} Power= NtasksPerTRES:0" ;;
*) echo "$@" >> "{asked}"; {then} ;;
esac
"""


def after(
    folder: Path,
    *words: object,
    state: str = "RUNNING",
    then: str = "kill $PPID",
    shows: str = ":",
    times: str = "",
    job: Mapping[str, str] = MappingProxyType({"SLURM_JOB_ID": "17"}),
    ends: int | None = None,
) -> str:
    """What scontrol was asked for; the command's end is that of the job where it was."""
    asked, program = folder / "asked", folder / "bin/scontrol"
    program.parent.mkdir(exist_ok=True)
    asked.unlink(missing_ok=True)
    log = folder / f"{job['SLURM_JOB_ID']}_0_log.out"
    texts = {"state": state, "asked": asked, "then": then, "shows": shows, "log": log}
    texts["times"] = times
    program.write_text(SCONTROL.format(**texts))
    program.chmod(0o755)
    where = f"{program.parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": where, **job, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "slurm.after", *map(str, words)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    told = asked.read_text() if asked.exists() else ""
    if not told:
        assert done.returncode == (words[0] if ends is None else ends)
    return told + done.stderr


def run_at(folder: Path, samples: int) -> Path:
    run = folder / "run"
    run.mkdir(exist_ok=True)
    (run / "latest").write_text(f"{samples:012}\n")
    return run


@pytest.mark.parametrize("code", [75, 1, 69, 137])
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


@pytest.mark.parametrize("told", [75, 137])
def test_what_failed_first_counts_and_not_the_highest_code(tmp_path: Path, told: int) -> None:
    """Slurm ended the others, of which one saved, or was killed; that of another start does not."""
    run = run_at(tmp_path, 64)
    (tmp_path / "17_0_log.failed1").write_text("2")
    (tmp_path / "17_0_log.failed0").write_text("69")
    assert "\nbroke down with 69; job 17" in after(tmp_path, told, run)
    assert (tmp_path / "17_0_log.restarts").read_text() == "69 64\n"
    again = {"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": "1"}
    assert after(tmp_path, told, run, job=again, ends=2) == ""
    assert not list(tmp_path.glob("*.failed*"))


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


def test_a_dataset_may_be_stopped_for_ever_but_not_break_down_so(tmp_path: Path) -> None:
    """It has no samples to count; what is finished of it stays."""
    for code in (75, 75, 75, 75, 75, 1, 1, 1):
        assert after(tmp_path, code).startswith("requeue 17\n")
    told = "error: 3 restarts without a step more, and ended with 1 again\n"
    assert after(tmp_path, 1) == told
    told = "requeue 17\nsaved; job 17 is requeued and goes on\n"
    assert after(tmp_path, 75) == told


def test_what_a_dataset_has_finished_is_its_progress(tmp_path: Path) -> None:
    made = tmp_path / "dataset"
    (made / "commits").mkdir(parents=True)
    for _ in range(3):
        told = "requeue 17\nsaved; job 17 is requeued and goes on at 0 finished files\n"
        assert after(tmp_path, 75, "--made", made) == told
    told = after(tmp_path, 75, "--made", made)
    assert told.startswith("error: 3 restarts at 0 finished files without a step more, and ended")
    (made / "commits/00000.json").write_text("{}")
    assert "requeue 17" in after(tmp_path, 75, "--made", made)
    assert sorted(path.name for path in made.iterdir()) == ["commits"]  # nothing of ours


@pytest.mark.parametrize(
    ("ran", "limit", "ends"),
    [(100, "1-00:00:00", False), (100, "UNLIMITED", False), (100, "00:02:00", True)],
)
@pytest.mark.parametrize("code", [75, 140])
def test_preemptions_may_come_again_and_again(
    tmp_path: Path, code: int, ran: int, limit: str, ends: bool
) -> None:
    """Before the first step too, or before Python listens; but too short a limit is told."""
    run = run_at(tmp_path, 64)
    for _ in range(4):
        started = int(time.time()) - ran
        told = after(tmp_path, code, run, times=f"StartTime={started} TimeLimit={limit}")
    assert told.startswith("error: 3 restarts") == ends
    assert ("requeue 17" in told) != ends


def test_the_count_lies_beside_a_log_whose_folder_has_spaces(tmp_path: Path) -> None:
    folder = tmp_path / "my runs"
    folder.mkdir()
    run = run_at(folder, 64)
    assert after(folder, 75, run).startswith("requeue 17\n")
    assert (folder / "17_0_log.restarts").read_text() == "75 64\n"
    assert [path.name for path in tmp_path.iterdir()] == ["my runs"]


def test_another_job_begins_to_count_anew(tmp_path: Path) -> None:
    run = run_at(tmp_path, 64)
    for _ in range(3):
        after(tmp_path, 137, run)
    assert after(tmp_path, 137, run).startswith("error: ")
    assert "requeue 18" in after(tmp_path, 137, run, job={"SLURM_JOB_ID": "18"})


def test_of_an_array_the_element_alone_is_requeued(tmp_path: Path) -> None:
    """The last one's SLURM_JOB_ID is the number of the whole array."""
    job = {"SLURM_JOB_ID": "22", "SLURM_ARRAY_JOB_ID": "22", "SLURM_ARRAY_TASK_ID": "2"}
    assert after(tmp_path, 75, run_at(tmp_path, 64), job=job).startswith("requeue 22_2\n")
