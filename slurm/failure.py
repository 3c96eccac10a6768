"""What a job step failed with first: srun tells only the highest exit code of its processes.

Slurm ends the others when one has failed. A first process that then saves ends with 75, and one
that is killed with 137: both are higher than 2 (a mistake) or 69 (the other nodes of a job).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from base.errors import Stopped, UserError
from base.owner import slurm_job
from slurm import queue


def note(environment: Mapping[str, str], code: int) -> None:
    """Write down what this process ended with, unless another of its step did before.

    Where it cannot be written the code that srun tells has to do.
    """
    job = slurm_job(environment)
    alone = int(environment.get("SLURM_STEP_NUM_TASKS", "1")) == 1
    if job is None or alone or code in (0, Stopped.exit_code):
        return
    with suppress(UserError, OSError), _file(queue.output(job), environment).open("x") as file:
        file.write(str(code))


def take(output: Path, environment: Mapping[str, str]) -> int | None:
    """The code that was written down by the step of this batch script, once."""
    path = _file(output, environment)
    with suppress(OSError, ValueError):
        code = int(path.read_text())
        path.unlink()
        return code
    return None


def _file(output: Path, environment: Mapping[str, str]) -> Path:
    """Beside what the batch script writes; of each start of the job another one."""
    return output.with_suffix(f".failed{environment.get('SLURM_RESTART_COUNT', '0')}")
