"""What runs on a node: its daemon, and the processes of jobs, which no daemon's end takes along."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from slurm.testbed.layout import Layout
from slurm.testbed.processes import Process, reap

_PATIENCE = 10.0
_POLL_SECONDS = 0.02


def kill_all(layout: Layout, node: str) -> list[Process]:
    """Kills whatever runs on a node at one moment, as the loss of a machine does; those left over.

    All are stopped first: of those that are killed one by one the last tell of the first, and Slurm
    hears of a job that failed, where it should hear nothing.
    """
    deadline = time.monotonic() + _PATIENCE
    stopped: list[Process] = []
    while new := [each for each in node_processes(layout, node) if each not in stopped]:
        _send(new, signal.SIGSTOP)
        stopped += new
    while (left := node_processes(layout, node)) and time.monotonic() < deadline:
        _send(left, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)
    for process in stopped:
        reap(process)
    return left


def node_processes(layout: Layout, node: str) -> list[Process]:
    """A node's daemon and its steps' daemons first, then tasks, with what those have started.

    The daemons are known by the node's log, which they hold open, and tasks by their environment.
    """
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    serving = [pid for pid in pids if _serves(pid, layout.logs / f"{node}.log")]
    marks = {f"SLURM_CLUSTER_NAME={layout.cluster}".encode(), f"SLURMD_NODENAME={node}".encode()}
    tasks = [pid for pid in pids if marks <= _environment(pid)]
    found = dict.fromkeys((*serving, *tasks))
    children = _children(pids)
    ordered = list(found)
    for pid in ordered:  # grows while it is read
        ordered += [child for child in children.get(pid, ()) if child not in found]
        found |= dict.fromkeys(children.get(pid, ()))
    processes = (Process.of(pid) for pid in ordered if pid != os.getpid())
    return [process for process in processes if process.alive]


def _send(processes: list[Process], number: signal.Signals) -> None:
    for process in processes:
        process.send(number)


def _serves(pid: int, log: Path) -> bool:
    """Whether it is a slurmd or a slurmstepd, or about to become one, that writes to the log."""
    return Path(_link(f"/proc/{pid}/exe")).name.startswith("slurm") and str(log) in _open_files(pid)


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
