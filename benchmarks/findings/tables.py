"""Figures as tables of a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from benchmarks.findings.figures import Figure

# How a figure is told: its factor, decimals, and unit. Distances of unit vectors are small.
_FORMS = {
    "CLIP score": (1, 3, ""),
    "cosine": (1, 3, ""),
    "Fréchet": (100, 2, ""),
    "variety": (1, 3, ""),
    "places": (1, 1, " px"),
    "PSNR": (1, 2, " dB"),
    "beyond bicubic, dB": (1, 2, ""),
}
_SHARE = (100, 1, "")  # per cent


class Row(NamedTuple):
    """One setting and its figures by their names."""

    name: str
    figures: dict[str, Figure]


class Table(NamedTuple):
    """Settings of one comparison."""

    title: str
    of: str  # what the first column holds
    rows: Sequence[Row]

    def markdown(self) -> str:
        """The table under its title; a figure comes with its 95 % interval, in brackets where the
        two sides of it are not equal."""
        names = list(dict.fromkeys(name for row in self.rows for name in row.figures))
        lines = [f"**{self.title}**", "", _line([self.of, *names]), "|---" * (len(names) + 1) + "|"]
        for row in self.rows:
            told = [_told(name, row.figures[name]) if name in row.figures else "" for name in names]
            lines.append(_line([row.name, *told]))
        return "\n".join([*lines, ""])

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        rows = {row.name: {n: asdict(f) for n, f in row.figures.items()} for row in self.rows}
        return {"title": self.title, "rows": rows}


def _told(name: str, figure: Figure) -> str:
    factor, decimals, unit = _FORMS.get(name, _SHARE)
    below, above = figure.value - figure.low, figure.high - figure.value
    value, low, high, half = (
        f"{round(factor * part, decimals) + 0.0:.{decimals}f}"  # no minus before zero
        for part in (figure.value, figure.low, figure.high, above)
    )
    equal = math.isclose(below, above, rel_tol=1e-6, abs_tol=1e-9)
    return f"{value} ± {half}{unit}" if equal else f"{value} ({low}–{high}){unit}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
