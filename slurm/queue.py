"""What Slurm says of jobs: squeue, and of those that it has forgotten sacct, where there is one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from base.errors import UserError

_SECONDS = 60
_FIELD = re.compile(r"(\S+?)=(.*?)(?=\s+\S+?=|\s*$)")  # a value may be a path with spaces
_LIMIT = re.compile(r"(?:(\d+)-)?(\d+):(\d+):(\d+)")
_ALIVE = (
    *("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD"),
    *("RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED"),
)
HOPELESS = "DependencyNeverSatisfied"  # Slurm's reason
# What sbatch says where there is no controller to ask.
_SILENT = ("Unable to contact", "Connection refused", "timed out", "configuration source")


@dataclass(frozen=True)
class JobState:
    """A job, as Slurm has it."""

    state: str
    nodes: str = ""
    reason: str = ""  # why it waits
    restarts: int | None = None

    @property
    def alive(self) -> bool:
        """Whether it runs or may still."""
        return self.state in _ALIVE

    @property
    def failed(self) -> bool:
        """Whether it is over and did not end well."""
        return not self.alive and self.state not in ("COMPLETED", "CANCELLED")

    @property
    def hopeless(self) -> bool:
        """Whether it waits for a job that did not end well."""
        return self.reason == HOPELESS


def require_slurm() -> None:
    """See that Slurm's commands are here.

    Raises:
        UserError: they are not.
    """
    missing = [
        name
        for name in ("sbatch", "srun", "squeue", "scontrol", "scancel")
        if shutil.which(name) is None
    ]
    if missing:
        raise UserError(
            f"no Slurm on this machine ({', '.join(missing)} not found): launch from a login node, "
            "or with --cluster local"
        )


def refusal(script: str) -> str | None:
    """Why Slurm would not take a batch script, in its own words; None where it would.

    Also where it cannot be asked: then the submission itself will tell.
    """
    if shutil.which("sbatch") is None:
        return None
    try:
        done = subprocess.run(
            ["sbatch", "--test-only"],
            input=script,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return None
    told = done.stderr.replace("sbatch: error: ", "").replace("allocation failure: ", "")
    asked = not any(text in told for text in _SILENT)
    return " ".join(told.split()) if done.returncode and asked else None


def states(jobs: Iterable[str]) -> dict[str, JobState]:
    """Of each job what is known; one that nobody remembers is left out.

    Raises:
        UserError: Slurm does not answer.
    """
    jobs = list(jobs)
    found = _squeue(jobs) if jobs else {}
    forgotten = [job for job in jobs if job not in found]
    return {**found, **(_sacct(forgotten) if forgotten else {})}


def start_time(job: str) -> float | None:
    """When Slurm last started a job, in seconds since 1970; None where it does not say."""
    return _time_of(job, "StartTime")


def end_time(job: str) -> float | None:
    """When a job's time is over; None where there is no limit, or Slurm does not say."""
    return _time_of(job, "EndTime")


def share_of_time(job: str) -> float | None:
    """How much of a job's time it has had, 0 to 1; None where Slurm does not say."""
    with suppress(UserError):
        shown = _shown(job)
        started, limit = shown.get("StartTime", ""), shown.get("TimeLimit", "")
        if limit == "UNLIMITED":
            return 0.0
        if started.isdigit() and (found := _LIMIT.fullmatch(limit)):
            days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
            whole = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
            return (time.time() - float(started)) / whole if whole else None
    return None


def runs(job: str) -> bool:
    """Whether a job runs and nobody, neither a user nor Slurm, is ending it.

    Raises:
        UserError: Slurm does not answer.
    """
    return _shown(job).get("JobState") == "RUNNING"


def requeue(job: str) -> None:
    """Have Slurm run a job again, under the same number.

    Raises:
        UserError: it refuses, with its reason.
    """
    _ask("scontrol", "requeue", job)


def output(job: str) -> Path:
    """The file that a job's batch script writes to.

    Raises:
        UserError: Slurm does not answer.
    """
    return Path(_shown(job).get("StdOut", f"job-{job}.out"))


def _time_of(job: str, name: str) -> float | None:
    with suppress(UserError):
        value = _shown(job).get(name, "")
        return float(value) if value.isdigit() else None
    return None


def _shown(job: str) -> dict[str, str]:
    """A job's fields, as `scontrol show job` has them."""
    text = _ask("scontrol", "--oneliner", "show", "job", job, SLURM_TIME_FORMAT="%s")
    return dict(_FIELD.findall(text))


def cancel(jobs: Iterable[str]) -> None:
    """Ends jobs, whether they run or wait."""
    if jobs := list(jobs):
        _ask("scancel", *jobs)


def _squeue(jobs: list[str]) -> dict[str, JobState]:
    # All of the user's: asking for a job that is gone is an error.
    fields = "jobarrayid:|,state:|,nodelist:200|,reason:80|,restartcnt:|"
    asked = ("squeue", "--me", "--array", "--noheader", "--states=all", f"--Format={fields}")
    lines = _ask(*asked).splitlines()
    found = {}
    for line in lines:
        job, state, nodes, reason, restarts = (part.strip() for part in line.split("|")[:5])
        if job in jobs:
            found[job] = JobState(
                state, nodes, "" if reason == "None" else reason, int(restarts or 0)
            )
    return found


def _sacct(jobs: list[str]) -> dict[str, JobState]:
    if shutil.which("sacct") is None:
        return {}
    asked = ("sacct", "--noheader", "--allocations", "--parsable2")
    try:
        text = _ask(*asked, "--format=JobID,State,NodeList", "--jobs", ",".join(jobs))
    except UserError:  # no accounting here
        return {}
    found = {}
    for line in text.splitlines():
        job, state, nodes = line.split("|")
        found[job] = JobState(_over(state), "" if nodes == "None assigned" else nodes)
    return found


def _over(state: str) -> str:
    """The end of a job that the controller has forgotten; accounts may not have heard of it."""
    word = state.split()[0]
    return "UNKNOWN" if word in _ALIVE else word


def _ask(*command: str, **environment: str) -> str:
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
    except FileNotFoundError:
        raise UserError(f"{command[0]}: not found; is this a login node?") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{command[0]}: no answer from Slurm within {_SECONDS} s") from None
    if done.returncode:
        raise UserError(f"{' '.join(command[:2])}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
