"""The command `unclip launch`."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from base.command import emit_json
from base.errors import UserError
from base.lease import owner
from base.owner import Owner
from slurm import batch, dry_run, queue
from slurm.launch import run_here, submit
from slurm.pipeline import Pipeline
from slurm.status import status as statuses
from slurm.status import table

app = typer.Typer(
    name="slurm",
    help="From a pipeline file to a finished model, as jobs of Slurm or on this machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_EXAMPLES = (
    "Examples: `unclip launch configs/pipelines/micro.yaml --dry-run` · "
    "`unclip launch pipeline.yaml` · `unclip launch pipeline.yaml --status` · "
    "`unclip launch pipeline.yaml --set resources.partition=gpu` · "
    "`unclip launch pipeline.yaml --sweep optim.lr=1e-4,3e-4 --stage prior`"
)
_WIDE = 200
_EVERY = 5.0  # seconds between two looks of --status on a terminal


@app.command(epilog=_EXAMPLES)
def launch(
    pipeline: Annotated[Path, typer.Argument(help="The pipeline's YAML file.")],
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Show graph, cost and every job's script; do nothing.")
    ] = False,
    cluster: Annotated[
        str, typer.Option(help="`slurm`, or `local`: one after another on this machine.")
    ] = "slurm",
    status: Annotated[
        bool, typer.Option("--status", help="How every stage gets on; live on a terminal.")
    ] = False,
    logs: Annotated[
        str | None, typer.Option(metavar="STAGE", help="Print what a stage's latest job wrote.")
    ] = None,
    rank: Annotated[
        int, typer.Option(min=0, help="With --logs: which of the job's processes.")
    ] = 0,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="End all jobs of this pipeline; what is saved stays.")
    ] = False,
    override: Annotated[
        list[str] | None, typer.Option("--set", help="A value over the file's: a.b=c.")
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=V,V",
            help="Train one stage with each value, as an array of jobs; several: all combinations.",
        ),
    ] = None,
    stage: Annotated[
        str | None,
        typer.Option(metavar="STAGE", help="The stage of --sweep, if there are several."),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object.")
    ] = False,
) -> None:
    """Run a pipeline: stages that are done are skipped, those that are queued are left alone.

    Run it again after a failure, and it goes on from there. Code and configs are frozen below
    `OUT/launch`, so that a later edit does not change a queued job.
    """
    if cluster not in ("slurm", "local"):
        raise UserError(f"--cluster: got {cluster!r}, expected slurm or local")
    if sum((dry, status, logs is not None, cancel)) > 1:
        raise UserError("--dry-run, --status, --logs and --cancel: one at a time")
    if stage is not None and not sweep:
        raise UserError("--stage: is for --sweep, which is not given")
    found = Pipeline.read(pipeline, override or [], sweep, stage)
    if dry:
        _show_dry_run(found, json)
    elif status:
        _show_status(found, cluster == "slurm", json)
    elif logs is not None:
        if cluster == "local":
            raise UserError("--logs: with --cluster local stages write where they were launched")
        _show_logs(found, logs, rank)
    elif cancel:
        (_cancel_here if cluster == "local" else _cancel)(found, json)
    elif cluster == "local":
        run_here(found, _say)
        _done(found, {}, json)
    else:
        _done(found, submit(found, _say), json)


def _console() -> Console:
    """A pipe is not 80 columns wide."""
    return Console() if sys.stdout.isatty() else Console(width=_WIDE)


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _done(pipeline: Pipeline, jobs: dict[str, str], json: bool) -> None:
    if json:
        emit_json({"out": pipeline.config.out, "jobs": jobs})
    elif jobs:
        _say("`--status` with the same file tells how they get on")


def _show_dry_run(pipeline: Pipeline, json: bool) -> None:
    lines = list(dry_run.dry_run(pipeline))
    if json:
        emit_json({"out": pipeline.config.out, "stages": [line.to_json() for line in lines]})
        return
    console = _console()
    console.print(dry_run.table(lines))
    costs = [line.cost for line in lines if line.cost is not None and not line.done]
    if costs:
        hours = sum(cost.gpu_hours for cost in costs)
        typer.echo(f"GPU hours of training, as `unclip plan` has them: {hours:.3g}")
    for line in lines:
        if line.script is not None:
            typer.echo(f"\n# ---- {line.name} ----\n{line.script}")


def _show_status(pipeline: Pipeline, ask_slurm: bool, json: bool) -> None:
    if json:
        emit_json({"stages": [asdict(stage) for stage in statuses(pipeline, ask_slurm)]})
        return
    console = _console()
    if not console.is_terminal:
        console.print(table(statuses(pipeline, ask_slurm)))
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            try:
                stages = statuses(pipeline, ask_slurm)
            except UserError as error:  # Slurm is silent for a while
                live.console.print(f"{error}; asking again")
            else:
                live.update(table(stages), refresh=True)
                if not any(stage.moving for stage in stages):
                    break
            time.sleep(_EVERY)
    if any(stage.state != "done" for stage in stages):
        _say("nothing runs any more: `unclip launch` with the same file goes on with what is left")


def _show_logs(pipeline: Pipeline, stage: str, rank: int) -> None:
    if stage not in pipeline.config.stages:
        raise UserError(
            f"--logs: got {stage!r}, expected one of {', '.join(pipeline.config.stages)}"
        )
    job = pipeline.records.jobs().get(stage)
    if job is None:
        raise UserError(f"--logs: stage {stage} has no job yet")
    path = batch.log_path(pipeline.records, job, rank)
    if not path.is_file():
        raise UserError(f"--logs: job {job} of stage {stage} has written nothing yet ({path})")
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            typer.echo(line, nl=False)


def _cancel_here(pipeline: Pipeline, json: bool) -> None:
    """Ask the launch that runs on this machine to have its stage save, and end."""
    holder = owner(pipeline.records.folder)
    if holder is not None:
        me = Owner.me()
        if (holder.host, holder.namespace) != (me.host, me.namespace):
            raise UserError(f"--cancel: it runs on another machine, {holder.describe()}")
        os.kill(holder.pid, signal.SIGTERM)
    if json:
        emit_json({"asked": None if holder is None else holder.pid})
    elif holder is None:
        _say("no launch of this pipeline runs here")
    else:
        _say(f"asked to save and end: {holder.describe()}")


def _cancel(pipeline: Pipeline, json: bool) -> None:
    own = {node.name for node in pipeline.nodes}
    jobs = {name: job for name, job in pipeline.records.jobs().items() if name in own}
    known = queue.states(jobs.values())
    ended = {name: job for name, job in jobs.items() if job in known and known[job].alive}
    queue.cancel(ended.values())
    if json:
        emit_json({"cancelled": ended})
        return
    for name, job in ended.items():
        _say(f"{name}: job {job} cancelled")
    if not ended:
        _say("no job of this pipeline runs or waits")
