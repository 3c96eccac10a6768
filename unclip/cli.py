"""The `unclip` command: a table of sub-commands, each loaded when it is asked for."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import typer

import base.command
from base.errors import UserError
from unclip import __version__

_FORWARD = {"ignore_unknown_options": True, "allow_extra_args": True}


@dataclass(frozen=True)
class SubCommand:
    """Where a sub-command lives: `app` of `module`, under its own name there when `nested`."""

    name: str
    module: str
    nested: bool
    help: str


SUB_COMMANDS = (
    SubCommand("demo", "unclip.demo", False, "From captions to pictures, small, on this machine."),
    SubCommand("doctor", "unclip.doctor", False, "What this machine has and what it lacks."),
    SubCommand("data", "data_pipeline.cli", False, "Pairs of pictures and captions to a DATASET."),
    SubCommand("train", "trainer.cli", True, "Train one stage from a config."),
    SubCommand("plan", "trainer.cli", True, "Memory, FLOPs and days of a run, before it begins."),
    SubCommand("checkpoint", "trainer.cli", True, "List, show, verify and export checkpoints."),
    SubCommand("generate", "trainer.cli", True, "Make pictures with what was trained."),
    SubCommand("launch", "slurm.cli", False, "A pipeline of stages, as jobs of Slurm or here."),
    SubCommand("evaluate", "trainer.cli", True, "Measure it: FID, CLIP score, scenes; a report."),
)

app = typer.Typer(
    name="unclip",
    help="DALL·E 2 (unCLIP) from pairs of pictures and captions to pictures from captions.",
    epilog="Try it: unclip demo --out runs/demo. Exit codes: 0 done, 2 your mistake, 3 nothing "
    "usable in the input, 4 training diverged, 75 stopped on request, 130 keyboard.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """The console script."""
    base.command.run(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"unclip {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Show the traceback of an error; understood anywhere."),
    ] = False,
) -> None:
    """Options of the command itself; `base.command.run` takes --debug before it gets here."""


def _forward(sub: SubCommand) -> Callable[[typer.Context], None]:
    """A command that hands its arguments to the sub-command's own app."""

    def call(context: typer.Context) -> None:
        command = typer.main.get_command(_load(sub))
        name, arguments = f"unclip {sub.name}", list(context.args)
        if sub.nested:
            name, arguments = "unclip", [sub.name, *arguments]
        code = command.main(args=arguments, prog_name=name, standalone_mode=False)
        if isinstance(code, int) and code:
            raise typer.Exit(code)

    return call


def _load(sub: SubCommand) -> typer.Typer:
    try:
        loaded = importlib.import_module(sub.module).app
    except ModuleNotFoundError as error:
        raise UserError(
            f"unclip {sub.name} needs {error.name}, which is not installed; "
            "run: pip install -c constraints.txt -e ."
        ) from error
    assert isinstance(loaded, typer.Typer)
    return loaded


for _sub in SUB_COMMANDS:
    app.command(_sub.name, help=_sub.help, add_help_option=False, context_settings=_FORWARD.copy())(
        _forward(_sub)
    )
