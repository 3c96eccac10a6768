"""Statistics as one figure of histograms and bars."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from base.errors import UserError
from base.files import atomic_path
from data_pipeline.stats.collect import Stats
from data_pipeline.stats.tally import Tally

FORMATS = (".png", ".svg", ".pdf")
_BINS = 40
_WIDE = 20.0  # largest / smallest beyond which an axis is logarithmic
_BARS = 12
_NAME = 28  # characters of a bar's name
_BLUE, _ORANGE, _GREY = "#3b6ea8", "#d98032", "#8a8a8a"


def require_drawable(path: Path) -> None:
    """Raises UserError when a figure cannot be written to `path`."""
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"plot: got {str(path)!r}, expected a file named {', '.join(FORMATS)}")
    if path.is_dir():
        raise UserError(f"plot: got {str(path)!r}, which is a folder, expected a file's name")


def draw(stats: Stats, path: Path) -> None:
    """Writes the figure, of the format that the file's name asks for."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    panels = _panels(stats)
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    with rc_context({"svg.hashsalt": "unclip", "font.size": 9}):
        figure = Figure(figsize=(4.6 * columns, 3.1 * rows + 0.6), layout="constrained")
        figure.suptitle(_title(stats), fontsize=11)
        for place, panel in enumerate(panels, 1):
            axes = figure.add_subplot(rows, columns, place)
            panel(axes)
            axes.spines[["top", "right"]].set_visible(False)
        fixed = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
        kind = path.suffix.lower()
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format=kind[1:], dpi=120, metadata=fixed.get(kind, {}))


def _title(stats: Stats) -> str:
    name = Path(stats.dataset).name
    name += "" if stats.selection is None else f", selection {stats.selection}"
    return (
        f"{name}: {stats.rows:,} of {stats.input:,} rows; same bytes {stats.same_sha256:,}, "
        f"same perceptual hash {stats.same_phash:,}"
    )


def _panels(stats: Stats) -> list[Callable[[Any], None]]:
    """What can be drawn of these statistics, each on axes of its own."""
    found = stats.quantities
    sizes = {"width": _BLUE, "height": _ORANGE}
    panels: list[Callable[[Any], None]] = [
        partial(
            _sizes, "source pictures", {n: (found[f"original_{n}"], c) for n, c in sizes.items()}
        ),
        partial(_sizes, "stored pictures", {n: (found[n], c) for n, c in sizes.items()}),
        partial(_histogram, "aspect of source pictures", "longer / shorter side", found["aspect"]),
        partial(_histogram, "captions", "characters", found["caption_chars"]),
        partial(_histogram, "captions", "words", found["caption_words"]),
    ]
    if "similarity" in found:
        tally = found["similarity"]
        panels.append(partial(_histogram, "picture and caption", "cosine", tally))
    if stats.domains:
        title = f"sources: the first of {stats.domain_count:,}"
        title = "sources" if stats.domain_count <= _BARS else title
        panels.append(partial(_bars, title, stats.domains))
    lost = {name: count for name, count in stats.lost.items() if count}
    if lost:
        panels.append(partial(_bars, "rejected" if stats.selection is None else "dropped", lost))
    return panels


def _sizes(title: str, tallies: dict[str, tuple[Tally, str]], axes: Any) -> None:
    both = np.concatenate([tally.values for tally, _ in tallies.values()])
    edges, log = bins(both, 1.0)
    for name, (tally, colour) in tallies.items():
        heights, _ = np.histogram(tally.values, edges, weights=tally.counts)
        axes.stairs(heights, edges, color=colour, label=name, fill=False, linewidth=1.6)
    axes.legend(frameon=False)
    _finish(axes, title, "pixels", edges, log)


def _histogram(title: str, unit: str, tally: Tally, axes: Any) -> None:
    edges, log = bins(tally.values, tally.step)
    heights, _ = np.histogram(tally.values, edges, weights=tally.counts)
    axes.stairs(heights, edges, color=_BLUE, fill=True, alpha=0.85)
    median = tally.quantile(0.5)
    axes.axvline(median, color=_ORANGE, linewidth=1.2, label=f"median {median:g}")
    axes.legend(frameon=False)
    _finish(axes, title, unit, edges, log)


def bins(values: npt.NDArray[np.float64], step: float) -> tuple[npt.NDArray[np.float64], bool]:
    """Edges between multiples of the step, and whether they grow by a factor.

    No bin is narrower than a step, so none is empty for being between two values.
    """
    low, high = float(values.min()), float(values.max())
    log = low > 0 and high / low > _WIDE and high - low > _BINS * step
    if log:
        edges = np.geomspace(low, high, _BINS + 1)
    else:
        width = max(1, round((high - low) / step / _BINS))
        edges = np.arange(low, high + (width + 1) * step, width * step)
    between = (np.unique(np.rint(edges / step)) - 0.5) * step
    if between[-1] <= high:
        between = np.append(between, high + step / 2)
    return between, log


def _finish(axes: Any, title: str, unit: str, edges: npt.NDArray[np.float64], log: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    axes.set_title(title, fontsize=10)
    axes.set_xlabel(unit)
    axes.set_ylabel("rows")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_ylim(bottom=0)
    margin = 0 if len(edges) > 2 else 10 * (edges[1] - edges[0])
    axes.set_xlim(edges[0] - margin, edges[-1] + margin)
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        axes.xaxis.set_minor_formatter(NullFormatter())


def _bars(title: str, counts: dict[str, int], axes: Any) -> None:
    shown = list(counts.items())[:_BARS]
    names = [name if len(name) <= _NAME else f"{name[: _NAME - 1]}…" for name, _ in shown]
    rows = [count for _, count in shown]
    places = np.arange(len(shown))
    axes.barh(places, rows, color=_GREY, height=0.7)
    axes.set_yticks(places, names)
    axes.set_ylim(max(len(shown), 3) - 0.4, -0.6)  # the first on top; few bars stay slim
    for place, count in zip(places, rows, strict=True):
        axes.text(count, place, f" {count:,}", va="center", fontsize=8)
    axes.set_xlim(0, max(rows) * 1.18)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.set_title(title, fontsize=10)


def short(value: float) -> str:
    """A number on an axis: 950, 1.5k, 2M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
