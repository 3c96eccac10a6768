"""The batch script of each job, as submitit writes it."""

from __future__ import annotations

import contextlib
import io
import math
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitit.slurm import slurm as submitit_slurm

from slurm.config import Resources
from slurm.environment import with_code
from slurm.job import run_job
from slurm.lookout import needed_seconds
from slurm.records import Records, Spec
from slurm.runs import RunFiles

_SIGNAL_DELAY_S = 120  # where no save has been measured, and at least; but
_LARGEST_SHARE = 4  # no more than the fourth part of a job's time
# Made when the job starts, so that it lies nowhere.
_RAY_TOKEN = "export RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \\n')"


@dataclass(frozen=True)
class Batch:
    """A stage's job, or an array of jobs if there are several specs.

    `after`: jobs that have to end well before it begins.
    """

    records: Records
    specs: Sequence[Spec]
    asked: Resources
    after: Sequence[str] = ()

    @property
    def parameters(self) -> dict[str, Any]:
        """What submitit is told."""
        specs, asked = self.specs, self.asked
        given: dict[str, Any] = {
            "job_name": specs[0].name.partition(".")[0],
            "partition": asked.partition,
            "account": asked.account,
            "qos": asked.qos,
            "gpus_per_node": asked.gpus_per_node or None,
            **_processes(asked),
            "mem": None if asked.mem_gb is None else _memory(asked.mem_gb),
            "time": asked.minutes,
            "signal_delay_s": asked.signal_delay_s
            or max(signal_delay(each, asked) for each in specs),
            "constraint": asked.constraint,
            "exclude": asked.exclude,
            "dependency": f"afterok:{':'.join(self.after)}" if self.after else None,
            "setup": [*_exports(specs, asked), *_setup(asked)],
            "srun_args": [
                *("--kill-on-bad-exit=1", "--wait=0"),
                *_spread(asked),
                *(asked.srun or ()),
            ],
            "teardown": [_after(specs)],
            "stderr_to_stdout": True,
            "comment": f"unclip:{specs[0].launch}",
            "additional_parameters": {"requeue": True, **_range(asked), **_options(asked)},
        }
        return {key: value for key, value in given.items() if value is not None}

    @property
    def script(self) -> str:
        """The text that sbatch is given."""
        python = self.asked.python or sys.executable
        command = [python, "-u", "-m", "submitit.core._submit", str(self.records.logs)]
        count = len(self.specs) if len(self.specs) > 1 else None
        return submitit_slurm._make_sbatch_string(
            shlex.join(command), self.records.logs, map_count=count, **self.parameters
        )

    def submit(self) -> list[str]:
        """Hand it to Slurm; the number of each job.

        Raises:
            FailedJobError: Slurm refuses it; submitit's, with what sbatch said.
        """
        logs, python = self.records.logs, self.asked.python
        logs.mkdir(parents=True, exist_ok=True)
        logs.chmod(0o700)  # jobs load pickles from there
        executor = submitit_slurm.SlurmExecutor(
            logs, python=None if python is None else shlex.quote(python)
        )
        executor.update_parameters(**self.parameters)
        paths = [str(self.records.spec_path(spec)) for spec in self.specs]
        with contextlib.redirect_stderr(io.StringIO()):  # what sbatch says is in the error as well
            jobs = executor.map_array(run_job, paths)
        return [str(job.job_id) for job in jobs]


def signal_delay(spec: Spec, asked: Resources) -> int:
    """Seconds before its end in which a job is to save: by the saves of its RUN, where it has."""
    needed = None if spec.run is None else needed_seconds(RunFiles(spec.run))
    wanted = max(_SIGNAL_DELAY_S, math.ceil(needed or 0))
    return wanted if asked.minutes is None else min(wanted, asked.minutes * 60 // _LARGEST_SHARE)


def _processes(asked: Resources) -> dict[str, Any]:
    """Nodes and their processes.

    Told how many processes a node has, Slurm would take the fewest nodes of a range; so there it is
    told a node's CPUs, and srun the processes.
    """
    cpus = asked.cpus_per_task
    if asked.min_nodes is None:
        return {"nodes": asked.nodes, "ntasks_per_node": asked.tasks, "cpus_per_task": cpus}
    return {"nodes": asked.nodes, "cpus_per_task": (cpus or 1) * asked.tasks}


def _range(asked: Resources) -> dict[str, str]:
    """submitit counts with `nodes`; a range goes past it."""
    return {} if asked.min_nodes is None else {"nodes": f"{asked.min_nodes}-{asked.nodes}"}


def _options(asked: Resources) -> dict[str, str | int | bool]:
    """More options of sbatch; what is false is not asked for, whatever the pipeline says."""
    return {name: value for name, value in (asked.sbatch or {}).items() if value is not False}


def _spread(asked: Resources) -> list[str]:
    """What srun is told of the processes: of their CPUs it does not hear from every sbatch."""
    cpus = asked.cpus_per_task if asked.min_nodes is None else asked.cpus_per_task or 1
    return [
        *([] if asked.min_nodes is None else [f"--ntasks-per-node={asked.tasks}"]),
        *([] if cpus is None else [f"--cpus-per-task={cpus}"]),
    ]


def _exports(specs: Sequence[Spec], asked: Resources) -> list[str]:
    values = with_code({**_modules(asked), **(asked.env or {})}, specs[0].code)
    lines = [f"export {name}={shlex.quote(value)}" for name, value in values.items()]
    lines.append("trap : USR2  # which may reach this script too")
    if asked.nodes != 1 and specs[0].run is None:
        lines.append(_RAY_TOKEN)
    return lines


def _modules(asked: Resources) -> dict[str, str]:
    """Where this Python finds more modules, as a cluster's software does; not in a container."""
    paths = os.environ.get("PYTHONPATH")
    if not paths or asked.python is not None:
        return {}
    return {
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(None, paths.split(os.pathsep))))
    }


def _setup(asked: Resources) -> list[str]:
    """The user's lines; where they ask for it, not the end of the script when the step fails."""
    return [*asked.setup, "set +e  # what comes after srun is to run"] if asked.setup else []


def _after(specs: Sequence[Spec]) -> str:
    """What the script ends with: it looks at the step's exit code."""
    before = shlex.join([sys.executable, "-m", "slurm.after"])
    if len(specs) > 1:
        runs = shlex.join(str(spec.run) for spec in specs)
        return f'code=$?; runs=({runs}); exec {before} "$code" "${{runs[$SLURM_ARRAY_TASK_ID]}}"'
    made = "" if specs[0].run else "--made "
    return f'exec {before} "$?" {made}{shlex.quote(specs[0].makes)}'


def _memory(gb: float) -> str:
    return f"{round(gb * 1024)}M"


def log_path(records: Records, job: str, process: int = 0) -> Path:
    """Where a job's process writes; the batch script writes where the first one does."""
    return records.logs / f"{job}_{process}_log.out"


def log_paths(records: Records, job: str) -> list[Path]:
    """Of all processes that have written anything, the first one's first."""
    found = records.logs.glob(f"{job}_*_log.out")
    return sorted(found, key=lambda path: int(path.name.rsplit("_", 2)[1]))
