"""metrics.jsonl: one line per stretch of training, cut back to the checkpoint on resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from base.errors import UserError
from base.files import write_atomic
from trainer.state import TrainState, Window

FILE = "metrics.jsonl"


class Metrics:
    """Appends lines to a run's metrics.

    A line has `samples`, `steps`, `loss` (mean over the stretch), `lr`, `grad_norm` (mean, before
    clipping), `samples_per_second`, `seconds` (of training, in all), `waited` (share of the time
    spent waiting for the loader), `skipped` (samples left out so far).
    """

    def __init__(self, run: Path) -> None:
        self._path = run / FILE

    def cut(self, samples: int) -> None:
        """Drop what lies after `samples`: the steps that a resumed run takes again."""
        if not self._path.is_file():
            return
        lines = [line for line in _whole_lines(self._path) if line["samples"] <= samples]
        write_atomic(self._path, "".join(json.dumps(line) + "\n" for line in lines))

    def write(self, state: TrainState, window: Window, rate: float) -> None:
        """Append a stretch of training as a line."""
        line = {
            "samples": state.samples,
            "steps": state.steps,
            "loss": window.loss / window.samples if window.samples else None,
            "lr": rate,
            "grad_norm": window.grad_norm / window.steps if window.steps else None,
            "samples_per_second": round(window.samples / max(window.seconds, 1e-9), 2),
            "seconds": round(state.seconds, 3),
            "waited": round(window.waited / max(window.seconds, 1e-9), 4),
            "skipped": sum(end - start for start, end in state.skipped),
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics, oldest first; a last line cut short by a kill is left out.

    Raises:
        UserError: the run has no metrics.
    """
    path = run / FILE
    if not path.is_file():
        raise UserError(f"{path}: no such file; has the run begun?")
    return _whole_lines(path)


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
