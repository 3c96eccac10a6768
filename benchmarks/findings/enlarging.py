"""Upsamplers trained on corrupted conditions beside such as were trained on clean ones."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from base.progress import Progress
from benchmarks.findings.comparisons import drawn
from benchmarks.findings.drawings import Studio
from benchmarks.findings.figures import difference, mean
from benchmarks.findings.judging import Judged, judge
from benchmarks.findings.plan import Plan
from benchmarks.findings.tables import Row, Table
from trainer.diffusion.degradations import enlarge, shrink
from trainer.evaluation.measures import psnr
from trainer.objectives.conditions import to_pixels, to_signal
from trainer.sampling.parts import Part

_CLEAN = ("up64_clean", "up256_clean")  # extras, in the order of the cascade
_CORRUPTED, _NOT = "trained on corrupted pictures", "trained on clean pictures"


def upsamplers(studio: Studio, plan: Plan) -> Iterator[Table]:
    """PSNR on true pictures; what becomes of the decoder's own."""
    levels = [level for level, extra in enumerate(_CLEAN) if extra in plan.extras]
    own = (plan.counts.captions, plan.counts.swept)
    total = sum(2 * (plan.counts.enlarged + own[level]) for level in levels)
    with Progress("upsamplers", total, "pictures") as bar:
        small = drawn(studio, plan, plan.usual).small
        for level in levels:
            usual = studio.cascade.upsamplers[level]
            parts = {_CORRUPTED: usual, _NOT: studio.upsampler(studio.out / _CLEAN[level], level)}
            name = f"{usual.config.objective.image_size // 4} → {usual.config.objective.image_size}"
            yield Table(f"{name}, true pictures", "upsampler", _true(studio, plan, parts, bar))
            few = small[: own[level]]
            yield from _own(studio, name, parts, few, bar)
            if level + 1 in levels:
                small = studio.enlarged(usual, small[: own[level + 1]], plan.usual.seed, None)


def _true(studio: Studio, plan: Plan, parts: dict[str, Part], bar: Progress) -> list[Row]:
    """PSNR on held-out pictures that were shrunk, beside bicubic enlargement."""
    objective = parts[_CORRUPTED].config.objective
    true = to_signal(studio.pairs.pictures(objective.image_size, plan.counts.enlarged))
    small = shrink(true, objective.factor)
    bicubic = psnr(enlarge(small, objective.factor).clamp(-1, 1), true).double().numpy()
    rows = [Row("bicubic", {"PSNR": mean(bicubic)})]
    for name, part in parts.items():
        found = psnr(studio.enlarged(part, small, plan.usual.seed, bar), true).double().numpy()
        beyond = difference(found, bicubic)
        rows.append(Row(name, {"PSNR": mean(found), "beyond bicubic, dB": beyond}))
    return rows


def _own(
    studio: Studio, name: str, parts: dict[str, Part], small: Tensor, bar: Progress
) -> Iterator[Table]:
    """What becomes of the decoder's own pictures, float [N, 3, S, S]."""
    found = {"bicubic": _judge(studio, enlarge(small, 4).clamp(-1, 1))}
    for kind, part in parts.items():
        found[kind] = _judge(studio, studio.enlarged(part, small, 0, bar))
    rows = [Row(kind, judged.figures()) for kind, judged in found.items()]
    yield Table(f"{name}, the decoder's pictures", "upsampler", rows)
    less = [Row(_CORRUPTED, found[_CORRUPTED].beside(found[_NOT]))]
    yield Table(f"{name}, the decoder's pictures, less those of the other", "upsampler", less)


def _judge(studio: Studio, pictures: Tensor) -> Judged:
    pixels = to_pixels(torch.as_tensor(pictures))
    return judge(pixels, studio.look(pixels), studio.pairs.take(range(len(pixels))))
