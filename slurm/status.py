"""How a launched pipeline gets on: each stage's job, and how far its RUN is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from base import yaml
from base.errors import UserError
from slurm import queue
from slurm.graph import Node
from slurm.launch import Pipeline

_TAIL = 1 << 16  # bytes of metrics.jsonl that are looked at


@dataclass(frozen=True)
class StageStatus:
    """One stage; what is not known is None."""

    name: str
    state: str  # done, a state of Slurm's, or `not submitted`
    job: str | None = None
    nodes: str | None = None
    reason: str | None = None
    restarts: int | None = None
    samples: int | None = None
    total: int | None = None
    rate: float | None = None  # samples a second
    loss: float | None = None
    seconds_left: float | None = None
    checkpoint: int | None = None  # samples of the latest


def status(pipeline: Pipeline, ask_slurm: bool = True) -> list[StageStatus]:
    """All stages, in their order.

    Raises:
        UserError: Slurm does not answer.
    """
    records = pipeline.records
    jobs = records.jobs()
    known = queue.states(jobs.values()) if ask_slurm and jobs else {}
    found = []
    for node in pipeline.nodes:
        job = jobs.get(node.name)
        state = known.get(job) if job is not None else None
        found.append(_stage(node, records.is_done(node), job, state))
    return found


def _stage(node: Node, done: bool, job: str | None, state: queue.JobState | None) -> StageStatus:
    if done:
        word = "done"
    elif state is not None:
        word = state.state
    else:
        word = "not submitted" if job is None else "unknown"
    return StageStatus(
        name=node.name,
        state=word,
        job=job,
        nodes=state.nodes or None if state is not None else None,
        reason=state.reason or None if state is not None else None,
        restarts=state.restarts if state is not None else None,
        **(_run(Path(node.makes)) if node.kind == "train" else {}),
    )


def _run(folder: Path) -> dict[str, Any]:
    """How far a RUN is, by its last metrics."""
    last = next(_lines_backwards(folder / "metrics.jsonl"), None)
    if last is None:
        return {}
    samples, total, rate = last["samples"], _total(folder), last.get("samples_per_second")
    latest = folder / "latest"
    return {
        "samples": samples,
        "total": total,
        "rate": rate,
        "loss": last.get("loss"),
        "seconds_left": (total - samples) / rate if total is not None and rate else None,
        "checkpoint": int(latest.read_text()) if latest.is_file() else None,
    }


def _total(folder: Path) -> int | None:
    """Samples that a RUN is to see, by its config."""
    try:
        config, _ = yaml.parse((folder / "config.yaml").read_text(), "config.yaml")
        return int(config["train"]["samples"])
    except (OSError, UserError, KeyError, TypeError, ValueError):
        return None


def _lines_backwards(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines at the end of a file that is being written."""
    try:
        with path.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - _TAIL, 0))
            tail = file.read()
    except FileNotFoundError:
        return
    for line in reversed(tail.splitlines()):
        try:
            yield json.loads(line)
        except ValueError:
            continue


def table(stages: list[StageStatus]) -> Table:
    """The stages, a line each."""
    shown = Table(box=SIMPLE, pad_edge=False)
    titles = ("stage", "state", "job", "node", "samples", "rate", "loss", "left", "checkpoint")
    for column in (*titles, "restarts", ""):
        shown.add_column(column)
    for stage in stages:
        samples = "" if stage.samples is None else f"{stage.samples:,}"
        if stage.total is not None:
            samples += f" / {stage.total:,}"
        shown.add_row(
            stage.name,
            stage.state,
            stage.job or "",
            stage.nodes or "",
            samples,
            "" if stage.rate is None else f"{stage.rate:,.1f}/s",
            "" if stage.loss is None else f"{stage.loss:.4g}",
            "" if stage.seconds_left is None else str(timedelta(seconds=round(stage.seconds_left))),
            "" if stage.checkpoint is None else f"{stage.checkpoint:,}",
            str(stage.restarts or ""),
            stage.reason or "",
        )
    return shown
