"""Statistics as people read them on a terminal."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from data_pipeline.stats.collect import Stats

_WIDTH = 100  # of a log or pipe
_SHOWN = 10  # sources
_COLUMNS = ("min", "p05", "median", "p95", "max", "mean")


def print_stats(stats: Stats) -> None:
    """Prints quantities, duplicates, sources and what was lost."""
    terminal = sys.stdout.isatty()
    console = Console(width=None if terminal else _WIDTH, highlight=False, markup=False)
    name = stats.name if stats.selection is None else f"{stats.name}, {stats.selection}"
    console.print(f"{name}: {stats.rows} of {stats.input} rows", soft_wrap=True)
    console.print()
    console.print(_quantities(stats))
    console.print()
    if stats.has_pictures:
        console.print(f"same bytes as an earlier row            {stats.same_sha256}")
        console.print(f"same perceptual hash as an earlier row  {stats.same_phash}")
    else:
        console.print("embeddings without pictures: no stored sizes, no duplicates by hash")
    if stats.domain_count:
        most = dict(list(stats.domains.items())[:_SHOWN])
        console.print()
        console.print(_counts(f"source, of {stats.domain_count}", most, stats.rows))
    if stats.without_domain:
        console.print(f"\nwithout an address: {stats.without_domain}")
    if stats.lost:
        title = "rejected for" if stats.selection is None else "dropped by"
        console.print()
        console.print(_counts(title, stats.lost, stats.input))


def _quantities(stats: Stats) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for column in _COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for name, tally in stats.quantities.items():
        summary = tally.summary()
        table.add_row(name, *(f"{summary[column]:{_form(column)}}" for column in _COLUMNS))
    return table


def _form(column: str) -> str:
    return ".4g" if column == "mean" else ".6g"


def _counts(title: str, counts: dict[str, int], total: int) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(title, overflow="fold")
    table.add_column("rows", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    for name, count in counts.items():
        table.add_row(name, str(count), f"{count / total:.1%}")
    return table
