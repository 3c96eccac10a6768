"""How a launched pipeline gets on: each stage's job, and how far its RUN is."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from base.errors import UserError
from base.lease import owner
from slurm import batch, queue
from slurm.graph import Node
from slurm.pipeline import Pipeline
from slurm.progress import of_stage
from slurm.records import Records
from slurm.runs import RunFiles, last_lines

_ERRORS = ("error: ", "slurmstepd: error: ", "srun: error: ")  # whose word counts before whose
_RESTARTS = re.compile(r"error: \d+ restarts")  # slurm.after's word


@dataclass(frozen=True)
class StageStatus:
    """One stage; what is not known is None."""

    name: str
    state: str  # done, a state of Slurm's, of one that runs here another, or `not submitted`
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
    seconds_lost: float | None = None  # to preemptions, from signal to first step, unqueued
    finished: int | None = None  # shards or pictures, of a stage that trains nothing
    unit: str | None = None

    @property
    def moving(self) -> bool:
        """Whether its job runs or may still."""
        job = queue.JobState(self.state, reason=self.reason or "")
        return job.alive and not job.hopeless


def status(pipeline: Pipeline, ask_slurm: bool = True) -> list[StageStatus]:
    """All stages, in their order; as jobs of Slurm, or as they run here.

    Raises:
        UserError: Slurm does not answer.
    """
    records = pipeline.records
    jobs = records.jobs()
    known = queue.states(jobs.values()) if ask_slurm and jobs else {}
    here = {} if ask_slurm else _here(records)
    found, stuck = list[StageStatus](), set[str]()
    for node in pipeline.nodes:
        job = jobs.get(node.name) if ask_slurm else None
        state = known.get(job) if job is not None else None
        try:
            done = "done" if records.is_done(node) else None
        except UserError:
            done = "done with another config"
        stage = _stage(node, done or here.get(node.name), job, state)
        if done is None and job is not None and (state is None or state.failed):
            stage = replace(stage, reason=_why(records, job, state))
        if stage.moving and stuck.intersection(node.needs):  # Slurm says so of the next one alone
            stage = replace(stage, reason=queue.HOPELESS)
        if done is None and not stage.moving:
            stuck.add(node.name)
        found.append(stage)
    return found


def _here(records: Records) -> dict[str, str]:
    """Of the stages that were begun on this machine the state of each."""
    running = owner(records.folder) is not None
    begun = "RUNNING" if running else "interrupted"
    return {
        name: begun if code is None else f"ended with {code}"
        for name, code in records.here().items()
    }


def _why(records: Records, job: str, state: queue.JobState | None) -> str | None:
    """Why a job failed: the last error of its processes' logs, the first one's before others'.

    What is told last, that restarts move nothing, is told with the error that they ended with.
    """
    paths = batch.log_paths(records, job)
    if not paths:
        nodes = "the nodes" if state is None or not state.nodes else state.nodes
        return f"it wrote no log; is {records.logs} in a folder that {nodes} have as well?"
    lines = [line for path in paths for line in reversed(last_lines(path))]
    ended = next((line for line in lines if _RESTARTS.match(line)), None)
    for kind in _ERRORS:
        causes = (line for line in lines if line.startswith(kind) and not _RESTARTS.match(line))
        if (cause := next(causes, None)) is not None:
            return cause if ended is None else f"{cause} ({ended.removeprefix('error: ')})"
    if ended is not None:
        return ended
    return None if state is None else state.reason or None


def _stage(
    node: Node, known: str | None, job: str | None, state: queue.JobState | None
) -> StageStatus:
    if known is not None:
        word = known
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
        **_progress(node),
    )


def _progress(node: Node) -> dict[str, Any]:
    if node.kind == "train":
        return _run(RunFiles(Path(node.makes)))
    found = of_stage(node.kind, Path(node.makes))
    return {"finished": found.count, "unit": found.unit} if found.count else {}


def _run(run: RunFiles) -> dict[str, Any]:
    """How far a RUN is, by its last metrics, and what its preemptions have cost."""
    if not (last := run.metrics()):
        return {}
    samples, total, rate = last["samples"], run.total(), last.get("samples_per_second")
    return {
        "samples": samples,
        "total": total,
        "rate": rate,
        "loss": last.get("loss"),
        "seconds_left": (total - samples) / rate if total is not None and rate else None,
        "checkpoint": run.samples() or None,
        "seconds_lost": sum(each.lost for each in run.preemptions()),
    }


def table(stages: list[StageStatus]) -> Table:
    """The stages, a line each."""
    shown = Table(box=SIMPLE, pad_edge=False)
    titles = ("stage", "state", "job", "node", "samples", "rate", "loss", "left", "checkpoint")
    for column in (*titles, "restarts", "lost", ""):
        shown.add_column(column)
    for stage in stages:
        samples = "" if stage.samples is None else f"{stage.samples:,}"
        if stage.finished is not None:
            samples = f"{stage.finished:,} {stage.unit}"
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
            f"{stage.seconds_lost:.0f} s" if stage.seconds_lost else "",
            stage.reason or "",
        )
    return shown
