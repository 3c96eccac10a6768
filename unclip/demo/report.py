"""report.html."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from base.files import write_atomic
from trainer.evaluation.page import data_url, figure_png, render
from trainer.metrics import read_metrics

from .config import RUNS


def loss_curves(out: Path) -> bytes:
    """A PNG with the loss of every run over the samples it has seen."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(RUNS), figsize=(4 * len(RUNS), 3), layout="constrained")
    for name, axis in zip(RUNS, axes, strict=True):
        lines = read_metrics(out / name)
        axis.plot([line["samples"] for line in lines], [line["loss"] for line in lines])
        axis.set(title=name, xlabel="samples", yscale="log")
        axis.grid(alpha=0.3)
    return figure_png(figure)


def write_report(out: Path, report: dict[str, Any]) -> None:
    """report.html: one file that needs nothing beside it."""
    page = render(
        "unclip.demo",
        "report.html.j2",
        report=report,
        curves=data_url(loss_curves(out)),
        pictures=data_url((out / "pictures.png").read_bytes()),
        runs=RUNS,
    )
    write_atomic(out / "report.html", page)
