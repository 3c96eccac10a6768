"""A selection as people read it: what each rule dropped and what was left after it."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data_pipeline.curate.run import Curated
from data_pipeline.schema.selection import SelectionInfo, selection_path

_WIDTH = 100  # of a log or pipe


def print_selection(dataset: Path, done: Curated) -> None:
    """Prints the account of a selection, and where it lies."""
    terminal = sys.stdout.isatty()
    console = Console(width=None if terminal else _WIDTH, highlight=False, soft_wrap=True)
    console.print(drops_table(done.selection))
    state = "" if done.made else ", as it was already"
    path = selection_path(dataset, done.selection.name)
    console.print(
        f"{path}: {done.selection.kept} of {done.selection.input} rows{state}", markup=False
    )
    split = done.selection.split or {}
    for part, rows in split.get("parts", {}).items():
        console.print(f"{selection_path(dataset, part)}: {rows} rows", markup=False)
    if split:
        console.print(
            f"{split['groups']} groups of like pictures, {split['largest_group']} rows in the "
            "largest; none is on both sides"
        )


def drops_table(selection: SelectionInfo) -> Table:
    """Rules in the order in which they were applied."""
    table = Table(box=None, pad_edge=False)
    table.add_column("rule", overflow="fold")
    for column in ("dropped", "left", "of input"):
        table.add_column(column, justify="right", no_wrap=True)
    left = selection.input
    table.add_row("(input)", "", str(left), "")
    for rule in selection.rules:
        left -= rule.dropped
        share = f"{rule.dropped / selection.input:.1%}"
        table.add_row(rule.rule, str(rule.dropped), str(left), share)
    table.add_row("(kept)", str(selection.input - left), str(left), f"{left / selection.input:.1%}")
    return table
