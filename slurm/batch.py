"""The batch script of each job, as submitit writes it."""

from __future__ import annotations

import contextlib
import functools
import io
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from submitit.slurm import slurm as submitit_slurm

from slurm.config import Resources
from slurm.job import run_job
from slurm.records import Records, Spec


def parameters(
    spec: Spec, asked: Resources, after: Sequence[str] = (), test_only: bool = False
) -> dict[str, Any]:
    """What submitit is told of a job; `after`: jobs that have to end well before it begins."""
    given: dict[str, Any] = {
        "job_name": spec.name,
        "partition": asked.partition,
        "account": asked.account,
        "qos": asked.qos,
        "nodes": asked.nodes,
        "ntasks_per_node": asked.tasks,
        "gpus_per_node": asked.gpus_per_node or None,
        "cpus_per_task": asked.cpus_per_task,
        "mem": None if asked.mem_gb is None else _memory(asked.mem_gb),
        "time": asked.minutes,
        "signal_delay_s": asked.signal_delay_s,
        "constraint": asked.constraint,
        "exclude": asked.exclude,
        "dependency": f"afterok:{':'.join(after)}" if after else None,
        "setup": [*_exports(spec, asked.env or {}), *(asked.setup or ())],
        "srun_args": ["--kill-on-bad-exit=1", *(asked.srun or ())],
        "stderr_to_stdout": True,
        "comment": f"unclip:{spec.launch}",
        "additional_parameters": {"requeue": True},
    }
    return {key: value for key, value in given.items() if value is not None}


def script(records: Records, given: Mapping[str, Any]) -> str:
    """The text that sbatch is given."""
    return submitit_slurm._make_sbatch_string(command(records), records.logs, **given)


def command(records: Records) -> str:
    """Of each process: submitit's, which runs `run_job`."""
    return shlex.join([sys.executable, "-u", "-m", "submitit.core._submit", str(records.logs)])


def submit(records: Records, spec: Spec, given: Mapping[str, Any]) -> str:
    """Hand a job to Slurm; its number.

    Raises:
        FailedJobError: Slurm refuses it; submitit's, with what sbatch said.
    """
    records.logs.mkdir(parents=True, exist_ok=True)
    records.logs.chmod(0o700)  # jobs load pickles from there
    executor = submitit_slurm.SlurmExecutor(records.logs)
    executor.update_parameters(**given)
    with contextlib.redirect_stderr(io.StringIO()):  # what sbatch says is in the error as well
        job = executor.submit(functools.partial(run_job, str(records.spec_path(spec))))
    return str(job.job_id)


def _exports(spec: Spec, env: Mapping[str, str]) -> list[str]:
    values = {"PYTHONPATH": spec.code, **env}
    return [f"export {name}={shlex.quote(value)}" for name, value in values.items()]


def _memory(gb: float) -> str:
    return f"{round(gb * 1024)}M"


def log_path(records: Records, job: str) -> Path:
    """Where a job's first process writes."""
    return records.logs / f"{job}_0_log.out"
