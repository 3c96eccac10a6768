"""What a launch would do: the graph, what it costs, and the text of every job."""

from __future__ import annotations

import json
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
from slurm import batch
from slurm.config import Resources
from slurm.graph import Node
from slurm.launch import Pipeline, require_acceptable

_MEMORY = "80GB"


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
        UserError: a stage was made by something else, or would be refused.
    """
    records = pipeline.records
    specs = records.freeze(pipeline.nodes, write=False)
    done = {name for name, spec in specs.items() if records.is_done(spec)}
    for nodes in pipeline.jobs():
        asked = pipeline.asked(nodes[0])
        after = [f"<job of {need}>" for need in nodes[0].needs if need not in done]
        left = [specs[node.name] for node in nodes if node.name not in done]
        text = None
        if left:
            require_acceptable(pipeline, left, nodes[0])
            text = batch.script(records, batch.parameters(left, asked, after))
        cost = _cost(nodes[0], asked) if nodes[0].kind == "train" else None
        for node in nodes:
            own = bool(left) and node.name == left[0].name  # an array has one script
            yield Line(
                name=node.name,
                kind=node.kind,
                needs=node.needs,
                done=node.name in done,
                asked=asked,
                cost=cost,
                script=text if own else None,
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
            asked.time,
            "" if cost is None else f"{cost.gpu_hours:.3g}",
            "" if cost is None else f"{cost.days:.3g}",
            "done before" if line.done else "" if cost is None or cost.fits else "does not fit",
        )
    return shown


def _cost(node: Node, asked: Resources) -> Cost | None:
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
            [sys.executable, *words, "--gpus", str(gpus), "--memory", _MEMORY, "--json"],
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
