"""The `unclip` command: a table of sub-commands, each loaded when it is asked for."""

import typer

import base.command

app = typer.Typer(name="unclip", pretty_exceptions_enable=False, add_completion=False)


def main() -> None:
    """The console script."""
    base.command.run(app)
