"""The comparisons of pictures by what the decoder is given, by guidance, and by re-ranking."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from base.progress import Progress
from benchmarks.findings.drawings import Drawing, Drawn, Studio
from benchmarks.findings.figures import Figure, apart, difference, expected_best, mean
from benchmarks.findings.judging import Judged, judge, near, places, spread
from benchmarks.findings.plan import TOGETHER, USUAL, Plan
from benchmarks.findings.tables import Row, Table

_BEST_OF = (1, 2, 4, 8)


def draw_all(studio: Studio, plan: Plan) -> None:
    """Draw what is missing of all that the comparisons need."""
    todo = [(drawing, plan.count(drawing)) for drawing in plan.drawings()]
    total = sum(count for _, count in todo)
    done = sum(count for drawing, count in todo if studio.has(drawing, count))
    with Progress("pictures", total, "pictures", done) as bar:
        for drawing, count in todo:
            if not studio.has(drawing, count):
                studio.draw(drawing, count, bar)


def drawn(studio: Studio, plan: Plan, drawing: Drawing) -> Drawn:
    """A drawing, whole."""
    return studio.draw(drawing, plan.count(drawing))


def judged(studio: Studio, plan: Plan, drawing: Drawing, count: int) -> Judged:
    """The first pictures of a drawing, measured."""
    made, pairs = drawn(studio, plan, drawing), studio.pairs.take(range(count))
    return judge(made.pictures[:count], made.features[:count], pairs)


def conditioning(studio: Studio, plan: Plan) -> Iterator[Table]:
    """By what the decoder is given."""
    count, conditions = plan.counts.captions, plan.conditions()
    true = studio.pairs.image_embedding[:count]
    found = {name: judged(studio, plan, d, count) for name, d in conditions.items()}
    rows = []
    for name, drawing in conditions.items():
        given = {} if drawing.source == "none" else near(drawn(studio, plan, drawing).z, true)
        rows.append(Row(name, {**found[name].figures(), **given}))
    yield Table("What the decoder is given", "the decoder is given", rows)
    others = [Row(name, found[name].beside(found[USUAL])) for name in found if name != USUAL]
    yield Table(f"The same, less the figures of {USUAL}", "the decoder is given", others)


def guidance(studio: Studio, plan: Plan) -> Iterator[Table]:
    """Fidelity and variety by scales of guidance."""
    for name, sweep in plan.sweeps().items():
        rows = [Row(f"{scale:g}", _guided(studio, plan, d)) for scale, d in sweep.items()]
        yield Table(f"{name[0].upper()}{name[1:]}", "scale", rows)


def _guided(studio: Studio, plan: Plan, drawing: Drawing) -> dict[str, Figure]:
    varied = plan.counts.varied
    several = [drawn(studio, plan, replace(drawing, seed=seed)) for seed in range(TOGETHER)]
    features = torch.stack([made.features[:varied] for made in several])  # [K, N, D]
    figures = judged(studio, plan, drawing, plan.counts.swept).figures()
    figures["variety"] = mean(apart(features))
    truths = studio.pairs.truths
    if truths is not None:
        single = [row for row, truth in enumerate(truths[:varied]) if len(truth.objects) == 1]
        placed = np.stack([places(made.pictures[single]) for made in several])  # [K, M, 2]
        if len(spread(placed)):
            figures["places"] = mean(spread(placed))
    return figures


def reranking(studio: Studio, plan: Plan) -> Iterator[Table]:
    """Of several pictures of a caption the one that CLIP finds nearest to it; so of several z_i."""
    count, total = plan.counts.swept, plan.counts.candidates
    several = [judged(studio, plan, replace(plan.usual, seed=seed), count) for seed in range(total)]
    scores = np.stack([found.clip for found in several])  # [K, N]
    rows, gains = [], []
    for k in (k for k in _BEST_OF if k <= total):
        best, gain = {}, {}
        for name in several[0].names:
            values = np.stack([found.values(name) for found in several])
            asked = scores[:, several[0].asking(name)]
            chosen, one = (expected_best(asked, values, n) for n in (k, 1))
            best[name], gain[name] = mean(chosen), difference(chosen, one)
        rows.append(Row(f"best of {k}", best))
        gains.append(Row(f"best of {k}", gain))
    yield Table("Pictures chosen by CLIP", "pictures", rows)
    yield Table("The same, less one picture", "pictures", gains[1:])
    yield Table("Embeddings chosen by z_i·z_t", "the prior's candidates", _candidates(studio, plan))


def _candidates(studio: Studio, plan: Plan) -> list[Row]:
    pairs = studio.pairs.take(range(plan.counts.captions))
    random = studio.cascade.random(plan.usual.seed, pairs.indices)
    rows = []
    for k in _BEST_OF:
        z = studio.embeddings(replace(plan.usual, candidates=k), pairs, random).cpu()
        rows.append(Row(f"best of {k}", near(z, pairs.image_embedding)))
    return rows
