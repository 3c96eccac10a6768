"""What a job of `unclip launch` does in each of its processes: the stage's command, and its end.

The first process looks whether the stage may begin, and afterwards whether what it made is whole.
Whether the job then runs again is decided in its batch script (slurm.after).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from base.errors import UserError, code_of
from slurm.command import Command
from slurm.environment import with_code
from slurm.process import as_process, run_command
from slurm.records import Records, Spec, read_spec


def run_job(path: str) -> None:
    """Do the stage of a spec file as one process of a job, or alone; the end is an exit code.

    Raises:
        SystemExit: the stage did not end well, with its exit code; 75: run it again.
    """
    code = as_process(os.environ, lambda: _run(Path(path)))
    if code:
        raise SystemExit(code)


def _run(path: Path) -> int:
    try:
        return Job(read_spec(path), os.environ).run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return code_of(error)


class Job:
    """One process of a stage's job."""

    def __init__(self, spec: Spec, environment: Mapping[str, str]) -> None:
        self._spec = spec
        self._environment = with_code(environment, spec.code)
        self._records = Records(Path(spec.launch))

    def run(self) -> int:
        """The exit code.

        Raises:
                UserError: what the stage needs is not there, or it was made by something else.
        """
        self._require_needs()
        if self._records.is_done(self._spec):
            return 0
        code = run_command(self._spec.command, self._environment, self._spec.run)
        first = self._environment.get("SLURM_PROCID", "0") == "0"
        return self._finish() if first and code == 0 else code

    def _require_needs(self) -> None:
        missing = self._records.missing(self._spec)
        if missing:
            raise UserError(
                f"stage {self._spec.name}: needs {', '.join(missing)}, not recorded as done in "
                f"{self._records.folder}; run `unclip launch` again"
            )

    def _finish(self) -> int:
        """Look at what was made; only what is whole is recorded."""
        if self._spec.check is not None:
            code = Command(self._environment).run(self._spec.check)
            if code:
                return code
        self._records.set_done(self._spec, job=self._environment.get("SLURM_JOB_ID"))
        return 0
