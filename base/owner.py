"""Who holds a lease: a process, told from every other one there ever was."""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

STALE_SECONDS = 300.0


@dataclass(frozen=True)
class Owner:
    """Who holds a folder; times are seconds since 1970."""

    host: str
    pid: int
    namespace: str  # pid namespace: containers may share a host's name but not its pids
    process_start: str  # tells a process from a later one with the same pid
    job: str | None  # Slurm's, as `slurm_job` has it
    start: float
    renewed: float
    token: str

    @staticmethod
    def me() -> Owner:
        now, pid = time.time(), os.getpid()
        return Owner(
            host=socket.gethostname(),
            pid=pid,
            namespace=namespace(),
            process_start=process_start(pid),
            job=slurm_job(os.environ),
            start=now,
            renewed=now,
            token=uuid.uuid4().hex,
        )

    def gives_way_to(self, other: Owner) -> bool:
        """Whether `other` may take the folder: this owner is dead, silent, or the same job."""
        if time.time() - self.renewed > STALE_SECONDS:
            return True
        if self.job is not None and self.job == other.job:
            return True
        same_machine = (self.host, self.namespace) == (other.host, other.namespace)
        return same_machine and process_start(self.pid) != self.process_start

    def describe(self) -> str:
        job = f", Slurm job {self.job}" if self.job else ""
        return f"host {self.host}, pid {self.pid}{job}"

    def to_bytes(self) -> bytes:
        """What a lease holds."""
        return json.dumps(asdict(self)).encode()

    @staticmethod
    def from_bytes(data: bytes) -> Owner | None:
        """The owner that a lease names; None when it names none."""
        try:
            return Owner(**json.loads(data))
        except (ValueError, TypeError):
            return None


def slurm_job(environment: Mapping[str, str]) -> str | None:
    """The job that a process is of; of an array the element alone, as squeue and sacct name it.

    The last element's SLURM_JOB_ID is the array's own number, which names them all.
    """
    array = environment.get("SLURM_ARRAY_JOB_ID")
    if array is not None:
        return f"{array}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment.get("SLURM_JOB_ID")


def namespace() -> str:
    """The pid namespace, as text; empty where the system does not tell."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def process_start(pid: int) -> str:
    """The process's start in clock ticks since boot; empty when it does not run."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]  # a zombie holds nothing
