"""A run's metrics: metrics.jsonl and what shows it, cut back to the checkpoint on resume."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from base.errors import UserError
from base.files import write_atomic
from trainer.outlets.base import Outlet
from trainer.state import TrainState, Window

FILE = "metrics.jsonl"
_NO_CURVES = ("samples", "steps", "seconds")

OF_THE_MACHINE = frozenset(
    ["seconds", "samples_per_second", "waited", "stalled", "tflops", "mfu", "memory", "stragglers"]
)
"""What of a line is not the run's own: the rest is the same bits, however often it was stopped."""


class Metrics:
    """Appends lines to metrics.jsonl, and hands the same numbers over `samples` to outlets.

    A line has `samples`, `steps`, `loss` (mean over the stretch; `loss_t0` … `loss_t3` in each
    quarter of the diffusion's time), `lr`, `grad_norm` (mean, before clipping),
    `samples_per_second`, `seconds` (of training, in all), `waited` (share of the time spent waiting
    for the loader), `stalled` (seconds of the stretch spent waiting for checkpoints), `skipped`
    (samples left out so far because something was not finite), `overflowed` (because fp16's loss
    scale was too large), and what the caller adds. What lies after `start`, the samples of the
    checkpoint that the run goes on from, is dropped: those steps come again.
    A context manager: outlets have threads, which end with it.
    """

    def __init__(self, run: Path, start: int, outlets: Sequence[Outlet]) -> None:
        self._path, self._start, self._outlets = run / FILE, start, outlets

    def __enter__(self) -> Metrics:
        self._cut()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for outlet in self._outlets:
            outlet.close()

    def _cut(self) -> None:
        if not self._path.is_file():
            return
        whole, damaged = _parse(self._path)
        if damaged:
            print(f"warning: {self._path}: {damaged} damaged lines are left out", file=sys.stderr)
        lines = [line for line in whole if line["samples"] <= self._start]
        write_atomic(self._path, "".join(json.dumps(line) + "\n" for line in lines))

    def write(
        self, state: TrainState, window: Window, rate: float, more: Mapping[str, Any]
    ) -> None:
        """Append a stretch of training as a line."""
        line = {
            "samples": state.samples,
            "steps": state.steps,
            "loss": window.mean_loss(),
            "lr": rate,
            "grad_norm": window.grad_norm / window.steps if window.steps else None,
            "samples_per_second": round(window.samples_per_second, 2),
            "seconds": round(state.seconds, 3),
            "waited": round(window.waited / max(window.seconds, 1e-9), 4),
            "stalled": round(window.stalled, 3),
            "skipped": sum(end - start for start, end in state.skipped),
            "overflowed": state.overflowed,
            **more,
        }
        for part, loss in enumerate(window.losses_by_time()):
            if loss is not None:
                line[f"loss_t{part}"] = loss
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        curves = {
            name: value
            for name, value in line.items()
            if isinstance(value, int | float) and name not in _NO_CURVES
        }
        for outlet in self._outlets:
            outlet.write(state.samples, curves)

    def show(self, picture: Tensor, samples: int) -> None:
        """Show a picture of the run's progress, uint8 [3, H, W], where pictures are shown."""
        for outlet in self._outlets:
            outlet.show(picture, samples)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics, oldest first; damaged ones are left out.

    Raises:
        UserError: the run has no metrics.
    """
    path = run / FILE
    if not path.is_file():
        raise UserError(f"{path}: no such file; has the run begun?")
    return _parse(path)[0]


def _parse(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines that can be read, and how many cannot; a last one cut short by a kill is neither.

    The file is not synced and has no hash: whatever befell it, the run goes on.
    """
    found = [_line(text) for text in path.read_bytes().split(b"\n")]
    whole = [line for line in found if line is not None]
    return whole, sum(line is None for line in found[:-1])


def _line(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:  # no JSON, or no UTF-8
        return None
    return line if isinstance(line, dict) and isinstance(line.get("samples"), int) else None
