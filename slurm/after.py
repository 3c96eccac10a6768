"""The end of every batch script: whether the job has to run again, and the request for it.

`python -m slurm.after CODE [RUN]`: CODE is that of the job step, RUN the run that it trained. A
step that saved on request (75) is run again, and so is one that broke down: a lost rank, a GPU or a
network that failed. What would end in the same way again (2, 3, 4, 130) is left, and so is what is
being ended: a user's scancel, or Slurm's own requeue.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from base.errors import Stopped, UserError
from slurm import queue
from slurm.restarts import Restarts
from slurm.runs import RunFiles

_FINAL = (0, 2, 3, 4, 130)  # exit codes of ours
_FRUITLESS = 3  # restarts in a row that moved nothing
_END_SECONDS = 120.0  # for the requeue to end this process
_TRIES = 60  # of scontrol, whose controller may be restarting
_PAUSE_SECONDS = 5.0

T = TypeVar("T")


def after(code: int, run: Path | None) -> int:
    """The job's exit code, if it is to end.

    Raises:
        UserError: nothing moves any more, or Slurm does not answer.
    """
    job = queue.own_job(os.environ)
    if job is None or code in _FINAL or not _retried(lambda: queue.runs(job)):
        return code
    files = None if run is None else RunFiles(run)
    samples = None if files is None else files.samples()
    restarts = Restarts(_retried(lambda: queue.output(job)).with_suffix(".restarts"))
    if code != Stopped.exit_code or samples is not None:
        _require_progress(restarts.fruitless(samples), samples, code)
    restarts.add(code, samples)
    if files is not None:
        files.note("requeued", samples=samples, code=code)
    how = "saved" if code == Stopped.exit_code else f"broke down with {code}"
    _say(f"{how}; job {job} is requeued and goes on{_where(samples)}")
    _retried(lambda: queue.requeue(job))
    time.sleep(_END_SECONDS)
    return code


def _require_progress(fruitless: int, samples: int | None, code: int) -> None:
    if fruitless < _FRUITLESS:
        return
    advice = "; give it more time, or less to save (resources.time, resources.signal_delay_s)"
    raise UserError(
        f"{fruitless} restarts{_where(samples)} without a step more, and ended with {code} again"
        + (advice if code == Stopped.exit_code else "")
    )


def _where(samples: int | None) -> str:
    return "" if samples is None else f" at {samples:,} samples"


def _retried(ask: Callable[[], T]) -> T:
    for _ in range(_TRIES - 1):
        with suppress(UserError):
            return ask()
        time.sleep(_PAUSE_SECONDS)
    return ask()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(words: list[str]) -> int:
    """The command; its exit code is the job's."""
    code, *run = words
    try:
        return after(int(code), Path(run[0]) if run else None)
    except UserError as error:
        _say(f"error: {error}")
        return int(code)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
