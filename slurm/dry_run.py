"""What a launch would do: the graph, what it costs, and the text of every job."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from base.errors import UserError
from base.source import SOURCES
from slurm.batch import Batch
from slurm.check import check_configs
from slurm.config import PlanConfig, Resources
from slurm.environment import with_code
from slurm.graph import Node
from slurm.launch import require_acceptable
from slurm.pipeline import Pipeline
from slurm.survey import Survey, survey


@dataclass(frozen=True)
class Cost:
    """Of a training stage, by `unclip plan`."""

    gpu_hours: float
    days: float
    fits: bool


@dataclass(frozen=True)
class Line:
    """A stage, as a dry run shows it."""

    name: str
    kind: str
    needs: tuple[str, ...]
    done: bool
    job: str | None  # that it has already
    asked: Resources
    cost: Cost | None
    script: str | None  # None: it would be skipped, or is in that of its array

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        cost = None if self.cost is None else vars(self.cost)
        asked = self.asked.model_dump(mode="json", exclude_none=True)
        return {**vars(self), "needs": list(self.needs), "asked": asked, "cost": cost}


def dry_run(pipeline: Pipeline) -> Iterator[Line]:
    """Every stage; nothing is written, and Slurm, if it is here, is asked what it would refuse.

    Raises:
        UserError: a config has a mistake, a job would be refused, a stage was made by something
            else.
    """
    records = pipeline.records
    specs = records.freeze(pipeline.nodes, write=False)
    found = survey(pipeline, specs)
    check_configs(node for nodes in found.left for node in nodes)
    scripts = {}  # an array's is its first stage's
    for nodes in found.left:
        left, asked = [specs[node.name] for node in nodes], pipeline.asked(nodes[0])
        require_acceptable(pipeline, left, nodes[0])
        needs = [need for need in nodes[0].needs if need not in found.done]
        after = [found.alive.get(need, f"<job of {need}>") for need in needs]
        scripts[nodes[0].name] = Batch(records, left, asked, after).script
    for node in pipeline.nodes:
        asked = pipeline.asked(node)
        yield Line(
            name=node.name,
            kind=node.kind,
            needs=node.needs,
            done=node.name in found.done,
            job=found.alive.get(node.name),
            asked=asked,
            cost=_cost(node, asked, pipeline.config.plan) if _counts(node, found) else None,
            script=scripts.get(node.name),
        )


def table(lines: list[Line]) -> Table:
    """The graph, with what every stage asks for."""
    shown = Table(box=SIMPLE, pad_edge=False)
    for column in (
        "stage",
        "kind",
        "after",
        "nodes × processes",
        "GPUs",
        "time",
        "GPU h",
        "days",
        "",
    ):
        shown.add_column(column)
    for line in lines:
        asked, cost = line.asked, line.cost
        gpus = (asked.nodes or 1) * (asked.gpus_per_node or 0)
        shown.add_row(
            line.name,
            line.kind,
            ", ".join(line.needs) or "–",
            f"{asked.nodes} × {asked.tasks}",
            str(gpus),
            str(asked.time),
            "" if cost is None else f"{cost.gpu_hours:.3g}",
            "" if cost is None else f"{cost.days:.3g}",
            _remark(line),
        )
    return shown


def _remark(line: Line) -> str:
    if line.done:
        return "done before"
    if line.job is not None:
        return f"job {line.job}, submitted before"
    return "" if line.cost is None or line.cost.fits else "does not fit"


def _counts(node: Node, found: Survey) -> bool:
    return node.kind == "train" and node.name not in found.done


def _cost(node: Node, asked: Resources, plan: PlanConfig) -> Cost | None:
    """None: it asks for no GPU, of which the plan tells."""
    gpus = (asked.nodes or 1) * (asked.gpus_per_node or 0)
    if not gpus:
        return None
    with tempfile.TemporaryDirectory() as folder:
        for name, text in node.files.items():
            (Path(folder) / name).write_text(text)
        words = [word.replace("{frozen}", folder) for word in node.command]
        words[words.index("train")] = "plan"
        done = subprocess.run(
            [sys.executable, *words, "--gpus", str(gpus), *plan.words(), "--json"],
            env=with_code(os.environ, str(SOURCES)),
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise UserError(f"stages.{node.name}: {_last_line(done.stderr)}")
    found = json.loads(done.stdout)
    fits = any(option["chosen"] and option["fits"] for option in found["options"])
    return Cost(gpus * 24 * found["days"], found["days"], fits)


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else "unclip plan failed"
