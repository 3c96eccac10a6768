"""Jobs of tests: submitted, watched, waited for."""

import time
from collections.abc import Callable
from pathlib import Path

from slurm.testbed.cluster import Cluster


def submit(cluster: Cluster, folder: Path, name: str, script: str, *options: str) -> str:
    """Submits a bash script; its id. What it prints is appended to NAME.out in the folder."""
    path = folder / f"{name}.sh"
    path.write_text(f"#!/bin/bash\n{script}\n")
    output = ("--open-mode=append", f"--output={folder / name}.out", f"--chdir={folder}")
    return cluster.run("sbatch", "--parsable", *output, *options, str(path)).strip()


def state(cluster: Cluster, job: str) -> str:
    """The job's state as the controller has it."""
    return cluster.run("squeue", "--noheader", "--states=all", "--format=%T", "--jobs", job).strip()


def node_of(cluster: Cluster, job: str) -> str:
    """The node that a job of one node is on."""
    return cluster.run("squeue", "--noheader", "--format=%N", "--jobs", job).strip()


def history(cluster: Cluster, job: str) -> list[str]:
    """The state in which each of the job's runs ended, as the accounting has it."""
    asked = ("sacct", "--noheader", "--duplicates", "--allocations", "--format=State%20")
    return [line.split()[0] for line in cluster.run(*asked, "--jobs", job).splitlines()]


def wait(holds: Callable[[], bool], what: str, seconds: float = 60, every: float = 0.2) -> None:
    """Waits until it holds; looks `every` so many seconds.

    Raises:
        TimeoutError: it does not, for so long.
    """
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(every)


def wait_for(cluster: Cluster, job: str, *states: str, seconds: float = 60) -> None:
    """Waits until the job is in one of the states."""
    wait(lambda: state(cluster, job) in states, f"job {job} {' or '.join(states)}", seconds)
