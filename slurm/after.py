"""The end of every batch script: whether the job has to run again, and the request for it.

`python -m slurm.after CODE [RUN | --made FOLDER]`: CODE is srun's, for which that of the process
that failed first is taken (slurm.failure), RUN the run that it trained, FOLDER what else it made. A
step that saved on request (75) is run again, one that was asked before it listened (140), and one
that broke down: a lost rank, a GPU or a network that failed. What would end in the same way again
(2, 3, 4, 130) is left, and so is what is being ended: a user's scancel, or Slurm's own requeue.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from base.errors import Stopped, UserError
from base.owner import slurm_job
from slurm import failure, queue
from slurm.progress import Progress, of_folder, of_run
from slurm.restarts import Restarts
from slurm.runs import RunFiles

_FINAL = (0, 2, 3, 4, 130)  # exit codes of ours
_UNHEARD = 128 + signal.SIGUSR2  # asked to save while Python was being started: nothing to save
_HOW = {Stopped.exit_code: "saved", _UNHEARD: "was asked to stop before it began"}
_FRUITLESS = 3  # restarts in a row that moved nothing
_EARLY = 0.5  # of a job's time
_END_SECONDS = 120.0  # for the requeue to end this process
_TRIES = 60  # of scontrol, whose controller may be restarting
_PAUSE_SECONDS = 5.0

T = TypeVar("T")


def after(code: int, run: Path | None = None, made: Path | None = None) -> int:
    """The job's exit code, if it is to end.

    Raises:
        UserError: nothing moves any more, or Slurm does not answer.
    """
    job = slurm_job(os.environ)
    if job is None or code in _FINAL:
        return code
    output = _retried(lambda: queue.output(job))
    code = failure.take(output, os.environ) or code
    if code in _FINAL or not _retried(lambda: queue.runs(job)):
        return code
    asked = code in (Stopped.exit_code, _UNHEARD)
    progress = of_run(run) if run else of_folder(made) if made else Progress(None)
    restarts = Restarts(output.with_suffix(".restarts"))
    if not (asked and _came_early(job)):
        if not (asked and progress.count is None):
            _require_progress(restarts.fruitless(progress.count), progress, code)
        restarts.add(code, progress.count)
    if run is not None:
        RunFiles(run).note("requeued", samples=progress.count, code=code)
    how = _HOW.get(code, f"broke down with {code}")
    _say(f"{how}; job {job} is requeued and goes on{progress}")
    _retried(lambda: queue.requeue(job))
    time.sleep(_END_SECONDS)
    return code


def _came_early(job: str) -> bool:
    """Whether the request to save came in the first half of the job's time.

    Then it was a preemption, and says nothing of whether the job has time enough.
    """
    share = queue.share_of_time(job)
    return share is not None and share < _EARLY


def _require_progress(fruitless: int, progress: Progress, code: int) -> None:
    if fruitless < _FRUITLESS:
        return
    advice = "; give it more time, or less to save (resources.time, resources.signal_delay_s)"
    raise UserError(
        f"{fruitless} restarts{progress} without a step more, and ended with {code} again"
        + (advice if code == Stopped.exit_code else "")
    )


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
    code, *what = words
    run = Path(what[0]) if len(what) == 1 else None
    made = Path(what[1]) if what[:1] == ["--made"] else None
    try:
        return after(int(code), run, made)
    except UserError as error:
        _say(f"error: {error}")
        return int(code)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
