"""One process of a job: how its ranks meet, and what a command of ours is run with."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from base.errors import Stopped
from base.hashing import stable_hash
from base.owner import slurm_job
from slurm import failure, queue
from slurm.command import Command
from slurm.lookout import Lookout
from slurm.runs import RunFiles

_PORTS = range(20_000, 32_000)  # below those that Linux gives to clients


def run_command(
    words: Sequence[str], environment: Mapping[str, str], run: Path | None = None
) -> int:
    """Run a command as one process of a job step, or alone; the exit code for Slurm.

    A signal to save goes on to the command, whose ranks agree at a step boundary, save together and
    exit with 75. Of the processes that save only the first one's code counts, and so it is where
    Slurm ends all because one has failed. `run`: the RUN that it trains, to look after.
    """
    first = environment.get("SLURM_PROCID", "0") == "0"
    command = Command({**environment, **rendezvous(environment)})
    if not first:
        code = command.run(words)
        return 0 if code == Stopped.exit_code or signal.SIGTERM in command.asked else code
    job = slurm_job(environment)
    if run is None or job is None:
        return command.run(words)
    return _looked_after(command, words, RunFiles(run), job)


def as_process(environment: Mapping[str, str], work: Callable[[], int]) -> int:
    """Do the work of one process of a job step, or of one alone; its exit code.

    A process beyond the first one does not die of SIGTERM when its command is done: Slurm ends the
    others as soon as the first one has ended with 75, also when they are only leaving, and a
    handler in Python is gone by then; while a command runs it is told as ever.
    """
    if environment.get("SLURM_PROCID", "0") != "0":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    code = work()
    failure.note(environment, code)
    return code


def _looked_after(command: Command, words: Sequence[str], files: RunFiles, job: str) -> int:
    files.note("started", queue.start_time(job), job=job)
    lookout = Lookout(files, lambda: queue.end_time(job))
    code = command.run(words, lookout.look)
    lookout.tell()
    if command.asked_at is not None:
        files.note("signalled", command.asked_at)
    return code


def rendezvous(environment: Mapping[str, str]) -> dict[str, str]:
    """Where the ranks of a job step meet: on the node that runs the batch script, the first one.

    Its address is Slurm's own, since node names need not be host names; the port is the job's, also
    where another cluster, as a testbed is, has a job of the same number on the same machine.
    """
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) == 1:
        return {}
    number = int(environment["SLURM_JOB_ID"]) * 7 + int(environment.get("SLURM_RESTART_COUNT", 0))
    number += stable_hash(environment.get("SLURM_CLUSTER_NAME", ""))
    return {
        "MASTER_ADDR": environment["SLURM_LAUNCH_NODE_IPADDR"],
        "MASTER_PORT": str(_PORTS[number % len(_PORTS)]),
    }
