"""A run's metrics: metrics.jsonl and TensorBoard, cut back to the checkpoint on resume."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from base.errors import UserError
from base.files import write_atomic
from trainer.state import TrainState, Window

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FILE = "metrics.jsonl"
TENSORBOARD = "tensorboard"
_CURVES = ("loss", "lr", "grad_norm", "samples_per_second", "waited", "skipped")


class Metrics:
    """Appends lines to metrics.jsonl, and the same numbers over `samples` to TensorBoard.

    A line has `samples`, `steps`, `loss` (mean over the stretch), `lr`, `grad_norm` (mean, before
    clipping), `samples_per_second`, `seconds` (of training, in all), `waited` (share of the time
    spent waiting for the loader), `skipped` (samples left out so far). What lies after `start`,
    the samples of the checkpoint that the run goes on from, is dropped: those steps come again.
    A context manager: TensorBoard's file is written by a thread, which ends with it.
    """

    def __init__(self, run: Path, start: int) -> None:
        self._run, self._path, self._start = run, run / FILE, start

    def __enter__(self) -> Metrics:
        self._cut()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if "_curves" in self.__dict__:
            self._curves.close()

    def _cut(self) -> None:
        if not self._path.is_file():
            return
        lines = [line for line in _whole_lines(self._path) if line["samples"] <= self._start]
        write_atomic(self._path, "".join(json.dumps(line) + "\n" for line in lines))

    def write(self, state: TrainState, window: Window, rate: float) -> None:
        """Append a stretch of training as a line."""
        line = {
            "samples": state.samples,
            "steps": state.steps,
            "loss": window.mean_loss(),
            "lr": rate,
            "grad_norm": window.grad_norm / window.steps if window.steps else None,
            "samples_per_second": round(window.samples / max(window.seconds, 1e-9), 2),
            "seconds": round(state.seconds, 3),
            "waited": round(window.waited / max(window.seconds, 1e-9), 4),
            "skipped": sum(end - start for start, end in state.skipped),
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        for name in _CURVES:
            if line[name] is not None:
                self._curves.add_scalar(name, line[name], state.samples)
        self._curves.flush()

    def show(self, picture: Tensor, samples: int) -> None:
        """Show a picture of the run's progress, uint8 [3, H, W], in TensorBoard."""
        self._curves.add_image("pictures", picture, samples)
        self._curves.flush()

    @cached_property
    def _curves(self) -> SummaryWriter:
        """Opened with the first line, so that no process is forked beside its thread."""
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        # TensorBoard drops what earlier files have from `purge_step` on.
        folder = str(self._run / TENSORBOARD)
        return SummaryWriter(folder, purge_step=self._start + 1)


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
