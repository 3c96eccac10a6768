"""The comparisons as pictures: sheets of settings by captions, and a plot of guidance."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from base.files import atomic_path
from benchmarks.findings.comparisons import drawn
from benchmarks.findings.drawings import Studio
from benchmarks.findings.plan import TOGETHER, Plan
from benchmarks.findings.tables import Table
from trainer.sampling.sheet import save_image

_SIDE, _GAP, _LEFT, _LINE = 96, 4, 130, 13
_CAPTION_LINES, _FONT = 4, 11
SHOWN = 8  # captions of a sheet


def write_sheets(studio: Studio, plan: Plan) -> list[Path]:
    """conditions.png and guidance.png beside what was drawn."""
    captions = studio.pairs.captions[:SHOWN]
    rows = {
        name: drawn(studio, plan, drawing).pictures[:SHOWN]
        for name, drawing in plan.conditions().items()
    }
    conditions = studio.out / "conditions.png"
    save_image(sheet(rows, captions), conditions)
    return [conditions, _guidance_sheet(studio, plan)]


def _guidance_sheet(studio: Studio, plan: Plan) -> Path:
    """Four pictures each of two captions, a row a scale."""
    rows = {}
    for scale, drawing in plan.sweeps()["the decoder's guidance"].items():
        several = [drawn(studio, plan, replace(drawing, seed=seed)) for seed in range(TOGETHER)]
        rows[f"guidance {scale:g}"] = [made.pictures[row] for row in (0, 1) for made in several]
    captions = [studio.pairs.captions[row] for row in (0, 1) for _ in range(TOGETHER)]
    path = studio.out / "guidance.png"
    save_image(sheet(rows, captions), path)
    return path


def sheet(rows: Mapping[str, Sequence[Tensor] | Tensor], captions: Sequence[str]) -> Image.Image:
    """Rows of uint8 pictures [3, S, S] with their names on the left and the captions above."""
    font, step = ImageFont.load_default(_FONT), _SIDE + _GAP
    top = _CAPTION_LINES * _LINE + _GAP
    size = (_LEFT + len(captions) * step, top + len(rows) * step)
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for column, caption in enumerate(captions):
        told = "\n".join(textwrap.wrap(caption, _SIDE // 6)[:_CAPTION_LINES])
        draw.multiline_text((_LEFT + column * step, 2), told, "black", font, spacing=1)
    for line, (name, pictures) in enumerate(rows.items()):
        y = top + line * step
        draw.multiline_text((4, y + 4), "\n".join(textwrap.wrap(name, 20)), "black", font)
        for column, picture in enumerate(pictures):
            pixels = Image.fromarray(picture.permute(1, 2, 0).numpy())
            x = _LEFT + column * step
            image.paste(pixels.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC), (x, y))
            draw.rectangle((x, y, x + _SIDE - 1, y + _SIDE - 1), outline=(190, 190, 190))
    return image


def write_plot(tables: Sequence[Table], path: Path) -> None:
    """Fidelity and variety over guidance, a line a sweep."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [n for n in ("single_all", "CLIP score", "Fréchet", "variety") if _has(tables, n)]
    size = (3.2 * len(names), 2.9)
    figure, axes = plt.subplots(1, len(names), figsize=size, layout="constrained")
    for name, axis in zip(names, np.atleast_1d(axes), strict=True):
        for table in tables:
            scales = [float(row.name) for row in table.rows]
            found = [row.figures[name] for row in table.rows]
            values = [figure.value for figure in found]
            reach = [[f.value - f.low for f in found], [f.high - f.value for f in found]]
            axis.errorbar(scales, values, reach, marker="o", ms=3, capsize=2, label=table.title)
        axis.set(title=name, xlabel="scale")
        axis.grid(alpha=0.3)
    np.atleast_1d(axes)[0].legend(fontsize=6)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=90)
    plt.close(figure)


def _has(tables: Sequence[Table], name: str) -> bool:
    return all(name in row.figures for table in tables for row in table.rows)
