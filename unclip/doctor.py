"""`unclip doctor`: what this machine has, what is missing, and how to get it."""

from dataclasses import replace
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from base.command import emit_json
from unclip.probes import PROBES, Finding, State

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
_SIGNS = {"ok": "[green]ok[/]", "lacking": "[red]missing[/]", "optional": "[yellow]not here[/]"}


@app.command(
    help="What this machine has and what it lacks. Exit code 0: the demo can run here; 2: it "
    "cannot.\n\nExamples: unclip doctor; unclip doctor --json"
)
def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Looks at everything once and prints what it found."""
    findings = examine()
    able = all(finding.state != "lacking" for finding in findings)
    if json:
        emit_json({"can_run_demo": able, "findings": {f.name: f for f in findings}})
    else:
        _show(findings, able)
    if not able:
        raise typer.Exit(2)


def examine() -> list[Finding]:
    """One finding per probe, whatever is missing or broken."""
    return [_probed(name) for name in PROBES]


def _probed(name: str) -> Finding:
    probe = PROBES[name]
    try:
        finding = probe.look(name)
    except Exception as error:  # a broken package can raise anything, and must not end the doctor
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        state: State = "lacking" if probe.needed else "optional"
        return Finding(name, state, f"cannot be examined: {reason}", probe.remedy)
    return replace(finding, remedy=None) if finding.state == "ok" else finding


def _show(findings: list[Finding], able: bool) -> None:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for finding in findings:
        table.add_row(finding.name, _SIGNS[finding.state], escape(finding.value))
        if finding.remedy:
            table.add_row("", "", f"[dim]to get it: {escape(finding.remedy)}[/]")
    console = Console(highlight=False)
    console.print(table)
    console.print(
        "\nThe demo can run here: unclip demo --out runs/demo"
        if able
        else "\nThe demo cannot run here until what is marked missing is there."
    )
