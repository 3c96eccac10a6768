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
_TALL = 30.0  # highest bin / median one beyond which rows are logarithmic
_BARS = 12
_NAME = 28  # characters of a bar's name
_HISTOGRAMS = {  # title and unit of a quantity's own panel
    "aspect": ("aspect of source pictures", "longer / shorter side"),
    "caption_chars": ("length of captions", "characters"),
    "caption_words": ("length of captions", "words"),
    "similarity": ("picture and caption", "cosine"),
}
_NAMES = {  # of a quantity in a sentence
    "original_width": "source width",
    "original_height": "source height",
    "aspect": "aspect",
    "width": "stored width",
    "height": "stored height",
    "caption_chars": "characters",
    "caption_words": "words",
    "similarity": "similarity",
}
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
    columns = max(1, min(3, len(panels)))
    rows = max(1, -(-len(panels) // columns))
    with rc_context({"svg.hashsalt": "unclip", "font.size": 9}):
        figure = Figure(figsize=(4.6 * columns, 3.1 * rows + 0.7), layout="constrained")
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
    name = ", ".join(Path(dataset).name for dataset in stats.datasets)
    name += "" if stats.selection is None else f", selection {stats.selection}"
    alike = {_NAMES[n]: f"{t.values[0]:g}" for n, t in stats.quantities.items() if _is_one(t)}
    told = ", ".join(f"{name} {value}" for name, value in alike.items())
    same = "no pictures"
    if stats.has_pictures:
        same = f"same bytes {stats.same_sha256:,}, same perceptual hash {stats.same_phash:,}"
    return f"{name}: {stats.rows:,} of {stats.input:,} rows; {same}" + (
        f"\nof all: {told}" if told else ""
    )


def _is_one(*tallies: Tally) -> bool:
    """Whether all rows have one value, which needs no histogram."""
    return all(len(tally.values) == 1 for tally in tallies)


def _panels(stats: Stats) -> list[Callable[[Any], None]]:
    """What can be drawn of these statistics, each on axes of its own."""
    found, panels = stats.quantities, list[Callable[[Any], None]]()
    for title, prefix in (("source pictures", "original_"), ("stored pictures", "")):
        width, height = found.get(f"{prefix}width"), found.get(f"{prefix}height")
        if width is not None and height is not None and not _is_one(width, height):
            panels.append(partial(_sizes, title, width, height))
    for name, (title, unit) in _HISTOGRAMS.items():
        if name in found and not _is_one(found[name]):
            panels.append(partial(_histogram, title, unit, found[name]))
    if stats.domains:
        title = f"sources: the first of {stats.domain_count:,}"
        title = "sources" if stats.domain_count <= _BARS else title
        panels.append(partial(_bars, title, stats.domains))
    lost = {name: count for name, count in stats.lost.items() if count}
    if lost:
        panels.append(partial(_bars, "rejected" if stats.selection is None else "dropped", lost))
    return panels


def _sizes(title: str, width: Tally, height: Tally, axes: Any) -> None:
    edges, log = bins(np.concatenate([width.values, height.values]), 1.0)
    heights = [_heights(tally, edges) for tally in (width, height)]
    for name, colour, rows in zip(("width", "height"), (_BLUE, _ORANGE), heights, strict=True):
        axes.stairs(rows, edges, color=colour, label=name, linewidth=1.6)
    axes.legend(frameon=False)
    _finish(axes, title, "pixels", edges, log, np.concatenate(heights))


def _histogram(title: str, unit: str, tally: Tally, axes: Any) -> None:
    median = tally.quantile(0.5)
    edges, log = bins(tally.values, tally.step)
    heights = _heights(tally, edges)
    axes.stairs(heights, edges, color=_BLUE, fill=True, alpha=0.85)
    axes.axvline(median, color=_ORANGE, linewidth=1.2, label=f"median {median:g}")
    axes.legend(frameon=False)
    _finish(axes, title, unit, edges, log, heights)


def _heights(tally: Tally, edges: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Rows in each bin."""
    return np.asarray(np.histogram(tally.values, edges, weights=tally.counts)[0], np.float64)


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
    between[-1] = max(float(between[-1]), high + step / 2)
    return between, log


def _finish(
    axes: Any,
    title: str,
    unit: str,
    edges: npt.NDArray[np.float64],
    log: bool,
    heights: npt.NDArray[np.float64],
) -> None:
    """Names, limits and ticks; rows are drawn on a logarithmic axis where one bin dwarfs most."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    readable = FuncFormatter(lambda value, _: short(value))
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(unit)
    if heights.max() > _TALL * np.median(heights[heights > 0]):
        axes.set_ylabel("rows (logarithmic)")
        axes.set_yscale("log")
        axes.set_ylim(0.7, heights.max() * 2)
        axes.yaxis.set_major_locator(LogLocator(10))
    else:
        axes.set_ylabel("rows")
        axes.set_ylim(0, heights.max() * 1.08)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(readable)
    if log:
        axes.set_xscale("log")
        axes.set_xlim(edges[0] / 1.05, edges[-1] * 1.05)
        axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(readable)
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        margin = 0.02 * (edges[-1] - edges[0])
        axes.set_xlim(edges[0] - margin, edges[-1] + margin)
        axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))


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
