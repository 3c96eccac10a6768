"""report.html of an evaluation, its sheets of pictures, and its lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from base.files import write_atomic
from base.progress import clock

from .drawn import read_drawn
from .page import COLUMNS, data_url, figure_png, render, spread, write_pictures

REPORT = "report.json"
PAGE = "report.html"
PICTURES = "pictures.png"
SWEEP = "guidance.png"

_SHOWN = 32


def write_report(
    out: Path,
    report: dict[str, Any],
    drawn: Mapping[float, Sequence[Path]],
    captions: Sequence[str],
) -> None:
    """report.html, which needs nothing beside it, and the sheets; `drawn`: by guidance."""
    first = next(iter(drawn.values()))
    chosen = spread(len(first), min(_SHOWN, len(first)))
    told = [captions[i] for i in chosen]
    write_pictures(read_drawn([first[i] for i in chosen]), told, out / PICTURES)
    swept = len(drawn) > 1
    if swept:
        _write_sweep(out / SWEEP, drawn, captions)
    page = render(
        __package__,
        "report.html.j2",
        report=report,
        pictures=data_url((out / PICTURES).read_bytes()),
        sweep=data_url((out / SWEEP).read_bytes()) if swept else None,
        plot=data_url(sweep_plot(report["results"])) if swept else None,
    )
    write_atomic(out / PAGE, page)


def _write_sweep(
    path: Path, drawn: Mapping[float, Sequence[Path]], captions: Sequence[str]
) -> None:
    """A row for each guidance, a column for each of a few captions."""
    chosen = spread(len(captions), min(COLUMNS, len(captions)))
    paths = [of_one[i] for of_one in drawn.values() for i in chosen]
    told = [f"{guidance:g}: {captions[i]}" for guidance in drawn for i in chosen]
    write_pictures(read_drawn(paths), told, path)


def sweep_plot(results: Sequence[Mapping[str, Any]]) -> bytes:
    """A PNG: the distance to true pictures against the CLIP score, a point for each guidance."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    name = "fid_clip" if results[0]["fid"] is None else "fid"
    across = [result["clip_score"]["drawn"]["score"] for result in results]
    up = [result[name] for result in results]
    figure, axis = plt.subplots(figsize=(5, 3.5), layout="constrained")
    axis.plot(across, up, marker="o")
    for x, y, result in zip(across, up, results, strict=True):
        axis.annotate(f"{result['guidance']:g}", (x, y), (4, 4), textcoords="offset points")
    axis.set(xlabel="CLIP score", ylabel=name, title="by the decoder's guidance")
    axis.grid(alpha=0.3)
    return figure_png(figure)


def summary(report: Mapping[str, Any]) -> str:
    """What `unclip evaluate` prints at its end, of what report.json holds."""
    return "\n".join(_lines(report))


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    yield f"{report['count']} captions of {report['data']['path']}, one picture each"
    for result in report["results"]:
        yield f"guidance {result['guidance']:g}: {', '.join(_figures(result))}"
        if result["scenes"] is not None:
            yield from _scenes(result["scenes"])
    true = report["results"][0]["clip_score"]["true"]
    yield f"true pictures: CLIP score {true['score']:.2f}, recall@1 {true['recall_at_1']:.1%}"
    prior = report["prior"]
    yield (
        f"prior: cosine {prior['cosine']:.3f} (text {prior['cosine_of_text']:.3f}), "
        f"recall@1 {prior['recall_at_1']:.1%} of {prior['count']}"
    )
    for name, value in report["upsamplers"].items():
        yield f"{name}: {value['psnr']:.2f} dB (bicubic {value['psnr_bicubic']:.2f})"
    yield from (f"warning: {warning}" for warning in report["warnings"])
    yield f"time of this call: {clock(report['seconds'])}"


def _figures(result: Mapping[str, Any]) -> Iterator[str]:
    if result["fid"] is not None:
        yield f"FID {result['fid']:.2f}"
    yield f"FID_CLIP {result['fid_clip']:.2f}"
    if result["inception_score"] is not None:
        yield f"IS {result['inception_score']['mean']:.2f}"
    overlap = result["overlap"] or result["overlap_clip"]
    yield f"precision {overlap['precision']:.3f}, recall {overlap['recall']:.3f}"
    yield f"CLIP score {result['clip_score']['drawn']['score']:.2f}"
    if result["diversity"] is not None:
        yield f"diversity {result['diversity']['clip_distance']:.3f}"


def _scenes(scenes: Mapping[str, Any]) -> Iterator[str]:
    for group, value in scenes.items():
        told = [
            f"{kind} {one['right']:.1%} ({one['low']:.1%} to {one['high']:.1%} of {one['count']})"
            for kind, one in value.items()
            if one["count"]
        ]
        if told:
            yield f"  {group:12}{', '.join(told)}"
