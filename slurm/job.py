"""What a job does, in each of its processes: run the stage's command, and act on how it ends.

The first process looks whether the stage may begin, and afterwards whether what it made is whole.
A signal to save goes on to the command, whose ranks agree at a step boundary, save together and
exit with 75; then the first process has the job requeued, once, and all wait for its end.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType

from base.errors import Stopped, UserError
from slurm.records import Records, Spec, read_spec

_AGAIN = Stopped.exit_code
_PORTS = range(20_000, 32_000)  # below those that Linux gives to clients
_END_SECONDS = 120.0  # for the requeue to end this process
_TRIES = 5  # of scontrol, whose controller may be restarting
_PAUSE_SECONDS = 5.0
_FRUITLESS = 3  # restarts in a row that moved nothing


def run_job(path: str) -> None:
    """Do the stage of a spec file as one process of a job, or alone; the end is an exit code.

    Raises:
        SystemExit: the stage did not end well, with its exit code; 75: run it again.
    """
    try:
        code = Job(read_spec(Path(path)), os.environ).run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        code = error.exit_code
    if code:
        raise SystemExit(code)


class Job:
    """One process of a stage's job."""

    def __init__(self, spec: Spec, environment: Mapping[str, str]) -> None:
        self._spec, self._environment = spec, environment
        self._records = Records(Path(spec.launch))
        self.rank = int(environment.get("SLURM_PROCID", "0"))
        self._child: subprocess.Popen[bytes] | None = None
        self._asked: list[int] = []  # signals that came while the last command ran

    def run(self) -> int:
        """The exit code.

        Raises:
            UserError: what the stage needs is not there.
        """
        if self.rank == 0:
            self._require_needs()
            if self._records.is_done(self._spec):
                return 0
        code = self._command(self._spec.command, rendezvous(self._environment))
        if self.rank:
            return 0 if code == _AGAIN else code  # or srun would end the others
        if code == 0:
            code = self._finish()
        if code == _AGAIN and signal.SIGUSR2 in self._asked:
            self._requeue()
        return code

    def _require_needs(self) -> None:
        missing = self._records.missing(self._spec)
        if missing:
            raise UserError(
                f"stage {self._spec.name}: needs {', '.join(missing)}, not recorded as done in "
                f"{self._records.folder}; run `unclip launch` again"
            )

    def _command(self, words: tuple[str, ...], more: Mapping[str, str]) -> int:
        """Run a command of ours to its end, signals passed on."""
        environment = {**self._environment, "PYTHONPATH": self._spec.code, **more}
        self._asked.clear()
        earlier = {number: signal.signal(number, self._pass_on) for number in _passed()}
        try:
            self._child = subprocess.Popen([sys.executable, *words], env=environment)
            for number in self._asked:  # while it was being started
                self._tell(number)
            code = self._child.wait()
        finally:
            self._child = None
            for number, handler in earlier.items():
                signal.signal(number, handler)
        return 128 - code if code < 0 else code

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._asked.append(number)
        self._tell(number)

    def _tell(self, number: int) -> None:
        """Let the command know, which may have been told already: by Slurm, or by a terminal.

        A second SIGTERM or SIGUSR2 changes nothing; a second SIGINT would end it unsaved.
        """
        if self._child is not None:
            self._child.send_signal(signal.SIGTERM if number == signal.SIGINT else number)

    def _finish(self) -> int:
        """Look at what was made; only what is whole is recorded."""
        if self._spec.check is not None:
            code = self._command(self._spec.check, {})
            if code:
                return code
        self._records.set_done(self._spec, job=self._environment.get("SLURM_JOB_ID"))
        return 0

    def _requeue(self) -> None:
        """Have Slurm run the job again, with the same number, and wait to be ended by that.

        Raises:
            UserError: it will not.
        """
        job = self._environment.get("SLURM_JOB_ID")
        if job is None:
            return
        self._require_progress()
        print(f"stage {self._spec.name}: saved; job {job} is requeued", file=sys.stderr, flush=True)
        _retried(lambda: requeue(job))
        time.sleep(_END_SECONDS)

    def _require_progress(self) -> None:
        """A run that is requeued again and again without a step would never end."""
        latest = Path(self._spec.makes) / "latest"  # of a RUN: samples seen
        if not latest.is_file():
            return
        now, seen = latest.read_text().strip(), self._records.folder / "seen"
        seen.mkdir(parents=True, exist_ok=True)
        path = seen / self._spec.name
        earlier = path.read_text().split() if path.is_file() else []
        same = [*(each for each in earlier if each == now), now]
        path.write_text("\n".join(same))
        if len(same) > _FRUITLESS:
            raise UserError(
                f"stage {self._spec.name}: {len(same)} restarts at {now} without a step more; "
                "give it more time, or less to save (resources.time, resources.signal_delay_s)"
            )


def requeue(job: str) -> None:
    """Ask Slurm to run a job again.

    Raises:
        UserError: it refuses, with its reason.
    """
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise UserError(f"scontrol requeue {job}: {done.stderr.strip() or done.stdout.strip()}")


def rendezvous(environment: Mapping[str, str]) -> dict[str, str]:
    """Where the ranks of a job step meet: on the node that runs the batch script, the first one.

    Its address is Slurm's own, since node names need not be host names; the port is the job's.
    """
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) == 1:
        return {}
    number = int(environment["SLURM_JOB_ID"]) * 7 + int(environment.get("SLURM_RESTART_COUNT", 0))
    return {
        "MASTER_ADDR": environment["SLURM_LAUNCH_NODE_IPADDR"],
        "MASTER_PORT": str(_PORTS[number % len(_PORTS)]),
    }


def _passed() -> tuple[signal.Signals, ...]:
    return (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


def _retried(ask: Callable[[], None]) -> None:
    for _ in range(_TRIES - 1):
        with suppress(UserError, subprocess.TimeoutExpired):
            ask()
            return
        time.sleep(_PAUSE_SECONDS)
    ask()
