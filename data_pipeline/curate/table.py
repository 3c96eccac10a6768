"""A selection as people read it: what each rule dropped and what was left after it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from data_pipeline.curate.run import Curated
from data_pipeline.schema.selection import SelectionInfo, selection_path

_WIDTH = 100  # of a log or pipe


def print_selections(datasets: Sequence[Path], done: Sequence[Curated]) -> None:
    """Prints the account of what was selected together, and where it lies."""
    terminal = sys.stdout.isatty()
    console = Console(width=None if terminal else _WIDTH, highlight=False, soft_wrap=True)
    console.print(drops_table([each.selection for each in done]))
    split: Mapping[str, Any] = {}
    for dataset, each in zip(datasets, done, strict=True):
        state = "" if each.made else ", as it was already"
        path = selection_path(dataset, each.selection.name)
        console.print(
            f"{path}: {each.selection.kept} of {each.selection.input} rows{state}", markup=False
        )
        split = each.selection.split or {}
        for part, rows in split.get("parts", {}).items():
            console.print(f"{selection_path(dataset, part)}: {rows} rows", markup=False)
    if split:
        console.print(
            f"{split['groups']} groups of like pictures, {split['largest_group']} rows in the "
            "largest; none is on both sides"
        )


def drops_table(selections: Sequence[SelectionInfo]) -> Table:
    """Rules in the order in which they were applied, with what they dropped of all the rows."""
    rows = sum(selection.input for selection in selections)
    table = Table(box=None, pad_edge=False)
    table.add_column("rule", overflow="fold")
    for column in ("dropped", "left", "of input"):
        table.add_column(column, justify="right", no_wrap=True)
    left = rows
    table.add_row("(input)", "", str(left), "")
    for counts in zip(*(selection.rules for selection in selections), strict=True):
        dropped = sum(count.dropped for count in counts)
        left -= dropped
        table.add_row(counts[0].rule, str(dropped), str(left), f"{dropped / rows:.1%}")
    table.add_row("(kept)", str(rows - left), str(left), f"{left / rows:.1%}")
    return table
