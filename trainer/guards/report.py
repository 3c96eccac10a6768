"""report.json of a run that ended because its loss was lost: what happened, and where."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from base.errors import UserError
from base.files import read_json, write_json
from trainer.session import Session

FILE = "report.json"


class StepRecord(NamedTuple):
    """A step as the report shows it."""

    samples: int  # position after it
    loss: float
    grad_norm: float
    applied: bool


def write_report(session: Session, reason: str, steps: Sequence[StepRecord]) -> Path:
    """Write RUN/report.json on the first rank; every rank calls this and gives its own loss."""
    ranks = session.engine.gather(
        {
            "rank": session.engine.rank,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "loss": _shown(session.own_loss()),
        }
    )
    path, state = session.config.out / FILE, session.state
    if session.engine.rank == 0:
        report: dict[str, Any] = {
            "reason": reason,
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "samples": state.samples,
            "steps": state.steps,
            "rollbacks": [record._asdict() for record in state.rollbacks],
            "skipped": state.skipped,
            "last_steps": [
                {**step._asdict(), "loss": _shown(step.loss), "grad_norm": _shown(step.grad_norm)}
                for step in steps
            ],
            "ranks": ranks,
        }
        write_json(path, report)
    return path


def remove_old_report(run: Path, samples: int) -> None:
    """Remove a report of an earlier end that a checkpoint at `samples` has left behind.

    One that cannot be read is left behind by any.
    """
    path = run / FILE
    if not path.is_file():
        return
    try:
        past = read_json(path)["samples"] < samples
    except (UserError, ValueError, KeyError, TypeError):
        past = True
    if past:
        path.unlink(missing_ok=True)


def _shown(value: float) -> float | str:
    """JSON knows no number that is not finite."""
    return value if math.isfinite(value) else str(value)
