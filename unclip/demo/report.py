"""report.html and pictures.png."""

from __future__ import annotations

import base64
import io
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jinja2
import torch
from torch import Tensor

from base.files import write_atomic
from trainer.metrics import read_metrics
from trainer.sampling.sheet import caption_sheet, save_image

from .config import RUNS

_PACKAGES = ("unclip", "torch", "deepspeed", "ray", "open_clip_torch", "pyarrow", "numpy")
_COLUMNS = 8


def versions() -> dict[str, str]:
    """Versions of what made the pictures, and the machine."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    on_gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name(0) if on_gpu else f"CPU ({platform.machine()})"
    return {**found, "device": device, "cpus": str(len(os.sched_getaffinity(0)))}


def write_pictures(pictures: Tensor, captions: Sequence[str], path: Path) -> None:
    """pictures.png: uint8 [N, 3, S, S] with the captions below them."""
    arrays = [picture.permute(1, 2, 0).contiguous().numpy() for picture in pictures]
    save_image(caption_sheet(arrays, captions, _COLUMNS), path)


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
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    plt.close(figure)
    return buffer.getvalue()


def write_report(out: Path, report: dict[str, Any]) -> None:
    """report.html: one file that needs nothing beside it."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("unclip.demo", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = _percent
    page = environment.get_template("report.html.j2").render(
        report=report,
        curves=_data_url(loss_curves(out)),
        pictures=_data_url((out / "pictures.png").read_bytes()),
        runs=RUNS,
    )
    write_atomic(out / "report.html", page)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
