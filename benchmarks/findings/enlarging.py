"""Upsamplers trained on corrupted conditions beside such as were trained on clean ones."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from base.progress import Progress
from benchmarks.findings.comparisons import drawn
from benchmarks.findings.drawings import Studio
from benchmarks.findings.figures import difference, mean
from benchmarks.findings.judging import judge
from benchmarks.findings.plan import Plan
from benchmarks.findings.sheets import SHOWN, sheet
from benchmarks.findings.tables import Row, Table
from trainer.diffusion.degradations import enlarge, shrink
from trainer.evaluation.measures import psnr
from trainer.objectives.conditions import to_pixels, to_signal
from trainer.sampling.parts import Part
from trainer.sampling.sheet import save_image

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
            made = _enlarged(studio, parts, small[: own[level]], bar)
            sheet_of = {kind: pixels[:SHOWN] for kind, pixels in made.items()}
            image = sheet(sheet_of, studio.pairs.captions[:SHOWN])
            save_image(image, studio.out / f"upsamplers-{level + 1}.png")
            yield from _own(studio, name, made)
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


def _enlarged(
    studio: Studio, parts: dict[str, Part], small: Tensor, bar: Progress
) -> dict[str, Tensor]:
    """The decoder's own pictures, float [N, 3, S, S], by what made them larger: uint8 pictures."""
    made = {"bicubic": enlarge(small, 4).clamp(-1, 1)}
    made |= {kind: studio.enlarged(part, small, 0, bar) for kind, part in parts.items()}
    return {kind: to_pixels(pictures) for kind, pictures in made.items()}


def _own(studio: Studio, name: str, made: dict[str, Tensor]) -> Iterator[Table]:
    """What became of the decoder's own pictures."""
    found = {}
    for kind, pixels in made.items():
        pairs = studio.pairs.take(range(len(pixels)))
        found[kind] = judge(pixels, studio.look(pixels), pairs)
    rows = [Row(kind, judged.figures()) for kind, judged in found.items()]
    yield Table(f"{name}, the decoder's pictures", "upsampler", rows)
    less = [
        Row(f"{_CORRUPTED}, less {kind}", found[_CORRUPTED].beside(found[kind]))
        for kind in ("bicubic", _NOT)
    ]
    yield Table(f"{name}, the same in pairs: {_CORRUPTED}", "upsampler", less)
