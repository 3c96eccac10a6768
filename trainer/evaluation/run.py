"""`unclip evaluate`: pictures of held-out captions, and how good they are."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from base.config import fingerprint
from base.errors import UserError
from base.files import write_json
from base.lease import Lease
from base.places import Place, folder_place
from base.progress import Progress
from base.stop import StopFlag
from data_pipeline.schema.dataset import DatasetInfo, read_dataset
from data_pipeline.schema.scenes import Scene, is_unseen
from trainer.loader.shards import Shards, whole_dataset
from trainer.sampling.cascade import Cascade
from trainer.sampling.checkpoints import at_checkpoints
from trainer.sampling.config import CascadeConfig, load_cascade_config, with_guidance
from trainer.sampling.meeting import Meeting, meeting
from trainer.sampling.requests import draw_missing

from .checks import rank_warning, require_fitting, seen_warning, trained_on
from .drawn import Networks, of_pairs, read_drawn
from .judges import Judges, find_judges
from .page import versions
from .pairs import Pairs, choose, mean_embedding, read_pairs, read_pictures
from .report import REPORT, write_report
from .results import NEIGHBOURS, diversity_results, picture_results, scene_results
from .scores import prior_scores, upsampler_scores
from .seen import CLIP, INCEPTION, Gallery, look_at

Pictures = Callable[[Sequence[int]], Tensor]
"""Places → pictures, uint8 [n, 3, S, S]."""

MOST = 1000  # captions, where no count is given
_REPEATED = 16  # captions of which several pictures are drawn
_UPSAMPLED = 64  # true pictures that upsamplers enlarge


@dataclass(frozen=True)
class Evaluation:
    """What is asked for."""

    cascade: Path
    data: str
    out: Path
    count: int | None = None  # captions; None: all, at most MOST
    seed: int = 0
    batch: int = 16
    guidance: tuple[float, ...] = ()  # of the decoder; without one the cascade's own
    features: str | None = None  # a CLIP that judges; None: the cascade's
    inception: Path | None = None  # a file of weights
    embeddings: str | None = None  # a further set's name
    repeats: int = 4  # pictures of each of a few captions
    measured: int = 256  # pairs that the prior is measured on
    overrides: tuple[str, ...] = ()


def evaluate(asked: Evaluation) -> dict[str, Any] | None:
    """Draw what is missing in `out`, measure, and write the report; gives what report.json holds.

    Under torchrun drawing and looking are dealt out; the others than the first give nothing.

    Raises:
        UserError: the cascade or the judges cannot be loaded, the DATASET does not fit, or `out`
            holds pictures of another evaluation.
        KeyboardInterrupt, Stopped: stopped on request; pictures that were drawn stay.
    """
    config = load_cascade_config(asked.cascade, asked.overrides)
    data = _read_data(config, asked)
    runs = trained_on(config, data.place, data.info)
    warnings = [seen_warning(data.place, runs)] if runs else []
    with ExitStack() as stack:
        met = stack.enter_context(meeting())
        if met.first:
            for warning in warnings:  # before anything takes long
                print(f"warning: {warning}", file=sys.stderr)
            stack.enter_context(Lease(asked.out))
        stop = stack.enter_context(StopFlag())
        config = met.share(at_checkpoints(config))  # a RUN may go on while it is measured
        report = _Work(asked, config, data, met, stop).run(warnings)
        met.wait()
    return report


class _Data(NamedTuple):
    place: Place
    info: DatasetInfo
    pairs: Pairs
    shards: Shards


def _read_data(config: CascadeConfig, asked: Evaluation) -> _Data:
    place = folder_place(asked.data)
    info = read_dataset(place)
    require_fitting(config, place, info, asked.embeddings)
    indices = choose(place, asked.count, MOST)
    if len(indices) <= NEIGHBOURS:
        raise UserError(
            f"{place}: {len(indices)} captions to draw, expected more than {NEIGHBOURS}: "
            "of so few neither covariances nor neighbours can be told"
        )
    pairs = read_pairs(place, asked.embeddings, indices)
    return _Data(place, info, pairs, whole_dataset(place, asked.embeddings))


class _Work:
    """One evaluation, as one process does its share of it."""

    def __init__(
        self, asked: Evaluation, config: CascadeConfig, data: _Data, met: Meeting, stop: StopFlag
    ) -> None:
        self.asked, self.config, self.data = asked, config, data
        self.met, self.stop = met, stop
        wanted = asked.guidance or (config.decoder.guidance,)
        self.configs = {guidance: with_guidance(config, guidance) for guidance in wanted}
        self.networks = Networks()

    def run(self, warnings: list[str]) -> dict[str, Any] | None:
        """Draw, look, measure, write; on the other processes than the first the first two."""
        begun, pairs, repeats = time.monotonic(), self.data.pairs, self.asked.repeats
        few = pairs.take(range(min(_REPEATED, len(pairs)) if repeats > 1 else 0))
        cascade = self.networks.at(self.config)
        judges = find_judges(cascade, self.asked.features, self.asked.inception)
        drawn = {guidance: self._draw("pictures", guidance, pairs) for guidance in self.configs}
        several = {g: self._draw("repeats", g, few, repeats) for g in self.configs}
        each = len(pairs) + len(few) * repeats
        looked = len(pairs) + each * len(self.configs)
        with Progress("measure", -(-looked // self.met.ranks), "pictures") as bar:
            true = self._look(judges, self._true_pictures(cascade.side), len(pairs), bar)
            made = {
                g: self._look(judges, _pngs(paths), len(pairs), bar, pairs.truths)
                for g, paths in drawn.items()
            }
            plain = replace(judges, inception=None)
            varied = {g: self._look(plain, _pngs(p), len(p), bar) for g, p in several.items()}
        if true is None:
            return None
        report = {
            "version": 1,
            **self._about(judges, true, warnings),
            "results": self._results(judges, true, made, varied),
            **self._of_networks(cascade),
            "seconds": round(time.monotonic() - begun, 1),
            "versions": versions(),
        }
        write_json(self.asked.out / REPORT, report)
        write_report(self.asked.out, report, drawn, pairs.captions)
        return report

    def _draw(self, name: str, guidance: float, pairs: Pairs, repeats: int = 1) -> list[Path]:
        if len(pairs) == 0:
            return []
        data, config = self.data.info.plan_fingerprint, self.configs[guidance]
        request = of_pairs(pairs, self.asked.seed, data, repeats)
        folder = self.asked.out / name / f"guidance_{guidance:g}"
        return draw_missing(request, config, folder, self.asked.batch, self.networks.at)

    def _true_pictures(self, side: int) -> Pictures:
        """As large as those that are drawn: it would be seen in the features."""
        indices = np.array(self.data.pairs.indices)
        return lambda places: read_pictures(self.data.shards, indices[list(places)], side)

    def _look(
        self,
        judges: Judges,
        pictures: Pictures,
        count: int,
        bar: Progress,
        truths: Sequence[Scene] | None = None,
    ) -> Gallery | None:
        if count == 0:
            return None
        batch = self.asked.batch
        return look_at(count, pictures, truths, judges, self.met, bar, self.stop, batch)

    def _results(
        self,
        judges: Judges,
        true: Gallery,
        made: dict[float, Gallery | None],
        varied: dict[float, Gallery | None],
    ) -> list[dict[str, Any]]:
        pairs, found = self.data.pairs, []
        parts = range(0, len(pairs), self.asked.batch)
        captions = list(pairs.captions)
        texts = [judges.read(captions[first : first + self.asked.batch]) for first in parts]
        for guidance, gallery in made.items():
            assert gallery is not None
            several, scenes = varied[guidance], None
            if pairs.truths is not None:
                scenes = scene_results(gallery.verdicts, [is_unseen(one) for one in pairs.truths])
            result = picture_results(true, gallery, torch.cat(texts), judges.device)
            spread = None if several is None else diversity_results(several, self.asked.repeats)
            found.append({"guidance": guidance, **result, "diversity": spread, "scenes": scenes})
        return found

    def _of_networks(self, cascade: Cascade) -> dict[str, Any]:
        """What the prior and the upsamplers make of true pairs."""
        asked, pairs = self.asked, self.data.pairs
        some = pairs.take(range(min(asked.measured, len(pairs))))
        mean = mean_embedding(self.data.place, asked.embeddings)
        enlarged = min(_UPSAMPLED, len(pairs))
        total = len(some) + enlarged * len(cascade.upsamplers)
        with Progress("networks", total, "pairs") as bar:
            return {
                "prior": prior_scores(cascade, some, mean, asked.seed, asked.batch, bar),
                "upsamplers": upsampler_scores(cascade, pairs, enlarged, asked.seed, bar),
            }

    def _about(self, judges: Judges, true: Gallery, warnings: list[str]) -> dict[str, Any]:
        asked, count = self.asked, len(self.data.pairs)
        widths = {whose: features.shape[1] for whose, features in true.features.items()}
        wide = {f"{whose}_width": width for whose, width in widths.items()}
        few = [rank_warning(f"fid_{CLIP}", count, widths[CLIP])]
        if INCEPTION in widths:
            few.append(rank_warning("fid", count, widths[INCEPTION]))
        file = None if asked.inception is None else str(asked.inception)
        return {
            "cascade": {"path": str(asked.cascade), "fingerprint": fingerprint(self.config)},
            "data": {"path": asked.data, "plan_fingerprint": self.data.info.plan_fingerprint},
            "count": count,
            "seed": asked.seed,
            "features": {"clip": asked.features or self.config.clip, "inception": file, **wide},
            "neighbours": NEIGHBOURS,
            "warnings": [*warnings, *(told for told in few if told is not None)],
        }


def _pngs(paths: Sequence[Path]) -> Pictures:
    return lambda places: read_drawn([paths[place] for place in places])
