"""The report's figures in a few lines for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from base.progress import clock


def summary(report: dict[str, Any]) -> str:
    """What `unclip demo` prints at its end, of what report.json holds."""
    return "\n".join(_lines(report))


def _lines(report: dict[str, Any]) -> Iterator[str]:
    scores, controls = report["scores"], report["controls"]
    if scores is not None:
        yield f"{'right, of held-out captions':28}{'seen':>8}{'unseen':>9}{'count':>7}"
        for name, score in scores.items():
            seen, unseen = _share(score["seen"]), _share(score["unseen"])
            yield f"  {name:26}{seen:>8}{unseen:>9}{score['count']:7}"
    for kind, groups in report["beyond"].items():
        shares = (f"{name} {_share(v['right'])} of {v['count']}" for name, v in groups.items())
        yield f"{kind}, which training does not show: {', '.join(shares)}"
    if controls is not None:
        own, foreign = (
            _share(controls[name]["colour"]) for name in ("true_embedding", "foreign_embedding")
        )
        yield f"colour with the true z_i {own}, with another picture's {foreign}"
    prior = report["prior"]
    yield (
        f"prior: cosine {prior['cosine']:.3f} (text {prior['cosine_of_text']:.3f}, "
        f"mean {prior['cosine_of_mean']:.3f}), recall@1 {prior['recall_at_1']:.1%} "
        f"of {prior['count']}"
    )
    for name, value in report["upsamplers"].items():
        yield f"{name}: {value['psnr']:.2f} dB (bicubic {value['psnr_bicubic']:.2f})"
    yield f"CLIP score: {report['clip_score']['caption']:.3f}"
    seconds = dict(report["seconds"])
    total = seconds.pop("total")
    stages = ", ".join(f"{name} {clock(value)}" for name, value in seconds.items())
    yield f"time: {clock(total)} ({stages})"
    device, cpus = report["versions"]["device"], report["versions"]["cpus"]
    yield f"made with configs/{report['configs']} on {device}, {cpus} CPU cores"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
