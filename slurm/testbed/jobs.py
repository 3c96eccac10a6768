"""The processes of jobs, which no daemon's end takes with it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from slurm.testbed.layout import Layout
from slurm.testbed.processes import Process, reap

_STEPD = "slurmstepd"
_PATIENCE = 10.0


def kill_jobs(layout: Layout, node: str) -> list[Process]:
    """Kills whatever a node's jobs have running, as the loss of a machine does; those left over."""
    deadline = time.monotonic() + _PATIENCE
    while (found := job_processes(layout, node)) and time.monotonic() < deadline:
        for process in found:
            process.send(signal.SIGKILL)
            reap(process)
        time.sleep(0.05)
    return found


def job_processes(layout: Layout, node: str) -> list[Process]:
    """A node's step daemons first, then their tasks, with what those have started.

    A step daemon is known by the node's log, which it holds open, and a task by its environment.
    """
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    steps = [pid for pid in pids if _is_step(pid, layout.logs / f"{node}.log")]
    marks = {f"SLURM_CLUSTER_NAME={layout.cluster}".encode(), f"SLURMD_NODENAME={node}".encode()}
    tasks = [pid for pid in pids if marks <= _environment(pid)]
    found = dict.fromkeys((*steps, *tasks))
    children = _children(pids)
    ordered = list(found)
    for pid in ordered:  # grows while it is read
        ordered += [child for child in children.get(pid, ()) if child not in found]
        found |= dict.fromkeys(children.get(pid, ()))
    processes = (Process.of(pid) for pid in ordered if pid != os.getpid())
    return [process for process in processes if process.alive]


def _is_step(pid: int, log: Path) -> bool:
    if not Path(_link(f"/proc/{pid}/exe")).name.startswith(_STEPD):
        return False
    return str(log) in _open_files(pid)


def _open_files(pid: int) -> Iterator[str]:
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            yield _link(str(entry))


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _environment(pid: int) -> set[bytes]:
    try:
        return set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    except OSError:
        return set()


def _children(pids: list[int]) -> dict[int, list[int]]:
    """Each process's children, by the parent's pid."""
    found: dict[int, list[int]] = {}
    for pid in pids:
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            found.setdefault(int(fields[1]), []).append(pid)
    return found
