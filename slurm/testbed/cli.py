"""The commands of `python -m slurm.testbed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from base.command import emit_json
from base.config import parse_config
from slurm.testbed.cluster import Cluster
from slurm.testbed.shape import Shape

app = typer.Typer(
    name="testbed",
    help="A real Slurm with accounting on this machine, its nodes all here, to try things on.",
    epilog="Example: `python -m slurm.testbed up --nodes 2 --dir /tmp/slurm`",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

_Dir = Annotated[Path, typer.Option("--dir", metavar="DIR", help="Everything of it lies there.")]


@app.command(epilog='Example: eval "$(python -m slurm.testbed up --nodes 2 --dir /tmp/slurm)"')
def up(
    folder: _Dir,
    nodes: Annotated[int, typer.Option(help="Nodes: n1, n2, …")] = 2,
    cpus: Annotated[int, typer.Option(help="CPUs that each node says it has.")] = 4,
    memory: Annotated[int, typer.Option(help="Megabytes that each node says it has.")] = 16_000,
    grace: Annotated[
        int, typer.Option(help="Seconds that a preempted job has after the signal.")
    ] = 30,
    requeue_delay: Annotated[
        int, typer.Option(help="Seconds that a requeued job waits before it may start again.")
    ] = 10,
    node_timeout: Annotated[int, typer.Option(help="Seconds until a silent node is down.")] = 15,
) -> None:
    """Start it, and print the line that lets Slurm's commands use it.

    Lacking Debian packages are installed by root. Partitions: low, the default, whose jobs give way
    to those of high and are requeued. A job that exits with 99 is requeued.
    """
    values = {
        "nodes": nodes,
        "cpus": cpus,
        "memory": memory,
        "grace": grace,
        "requeue_delay": requeue_delay,
        "node_timeout": node_timeout,
    }
    shape = parse_config(values, Shape, "the command line")
    cluster = Cluster(folder)
    state = "up" if cluster.up(shape) else "up already"
    typer.echo(f"{cluster.layout.folder}: {state}, {nodes} nodes; to use it:", err=True)
    typer.echo(f"export SLURM_CONF={cluster.layout.slurm_conf}")


@app.command(epilog="Example: python -m slurm.testbed down --dir /tmp/slurm")
def down(folder: _Dir) -> None:
    """Stop all of it, running jobs too; its files stay, and `up` goes on from them."""
    state = "down" if Cluster(folder).down() else "down already"
    typer.echo(f"{folder}: {state}", err=True)


@app.command(epilog="Example: python -m slurm.testbed status --dir /tmp/slurm --json")
def status(
    folder: _Dir,
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = (
        False
    ),
) -> None:
    """Tell which daemons run, and what Slurm says of the nodes."""
    found = Cluster(folder).status()
    if json:
        emit_json(found)
        return
    some = any(pid is not None for pid in found.daemons.values())
    typer.echo(f"{found.folder}: {'up' if found.up else 'half up' if some else 'down'}")
    for name, pid in found.daemons.items():
        state = f"  {found.nodes[name]}" if name in found.nodes else ""
        typer.echo(f"{name:<10} {f'pid {pid}' if pid else 'does not run'}{state}")
