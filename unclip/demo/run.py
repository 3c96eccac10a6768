"""The demo's stages, one after another; each goes on where an interrupted one ended."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from base.config import dump_config, fingerprint
from base.errors import UserError
from base.files import read_json, write_atomic, write_json
from base.lease import Lease
from base.progress import Progress
from data_pipeline.clip_spec import find_clip
from data_pipeline.cluster import cluster
from data_pipeline.config import PrepareConfig
from data_pipeline.embed import embed, is_embedded
from data_pipeline.pipeline import prepare
from data_pipeline.scenes import write_scenes
from data_pipeline.schema.dataset import DATASET_FILE, read_dataset
from trainer.evaluation.page import spread, versions, write_pictures
from trainer.evaluation.pairs import Pairs, balanced, distinct, mean_embedding, read_pairs
from trainer.evaluation.scores import prior_scores, scene_scores, upsampler_scores
from trainer.loop import train
from trainer.sampling.cascade import Cascade, load_cascade
from trainer.sampling.config import (
    CascadeConfig,
    DecoderPart,
    PriorPart,
    UpsamplerPart,
    load_cascade_config,
)
from trainer.stages import load_train_config

from .config import RUNS, DemoConfig, config_folder, load_demo_config
from .corpus import BEYOND, Part, parts_of
from .draw import draw, from_caption
from .evaluate import CONTROLS, clip_scores, control_scores, group_scores
from .report import write_report
from .split import split_counts, split_pairs

_STAGES = ("corpus", "prepare", "clip", "embed", *RUNS[1:], "pictures", "report")
_OWN_SPLITS = ("train", "heldout")  # a user's pairs have no combinations to leave unseen
_SHOWN_BEYOND = 8  # pictures of each kind that training does not show: a row of the sheet
_STORED = PrepareConfig(samples_per_shard=1000)
_STORED_OWN = PrepareConfig(samples_per_shard=1000, mode="border")  # nothing is cut off


def run_demo(out: Path, data: Path | None = None, configs: Path | None = None) -> dict[str, Any]:
    """Run every stage that is not done and write the report; gives what report.json holds.

    Raises:
        UserError: bad input, or `out` holds a demo of other data or configs, or is in use.
        KeyboardInterrupt, Stopped: interrupted; what was done stays.
    """
    folder = config_folder(configs)
    if data is not None and not data.exists():
        raise UserError(f"--data: {data}: no such file or folder")
    demo = Demo(out, None if data is None else data.resolve(), folder)
    with _removed_if_empty(out), Lease(out):
        demo.claim()
        return demo.run()


class Demo:
    """One demo in one folder."""

    def __init__(self, out: Path, data: Path | None, configs: Path) -> None:
        self.out, self.data, self.configs = out, data, configs
        self.config: DemoConfig = load_demo_config(configs)

    def claim(self) -> None:
        """Record what this folder's demo is made of, or see that it is the same.

        Raises:
            UserError: the folder holds another demo.
        """
        texts = {name: (self.configs / f"{name}.yaml").read_text() for name in ("demo", *RUNS)}
        record = {
            "version": 1,
            "data": None if self.data is None else str(self.data),
            "configs": {name: fingerprint(text) for name, text in texts.items()},
        }
        path = self.out / "demo.json"
        if path.is_file():
            earlier = read_json(path)
            if earlier != record:
                what = "data" if earlier.get("data") != record["data"] else "configs"
                raise UserError(f"{self.out}: holds a demo with other {what}; choose another --out")
        else:
            write_json(path, record)

    def run(self) -> dict[str, Any]:
        """All stages."""
        with self._timed("corpus"):
            self._corpus()
        with (
            self._timed("prepare"),
            self._ray(not all(map(self._is_prepared, self.splits))),
            Progress("prepare", self._count_of_input(), "samples") as bar,
        ):
            for split in self.splits:
                self._prepare(split, bar)
        self._train("clip")
        kept = sum(read_dataset(self._dataset(split)).kept for split in self.splits)
        with (
            self._timed("embed"),
            self._ray(not all(map(self._is_embedded, self.splits))),
            Progress("embed", kept, "samples") as bar,
        ):
            for split in self.splits:
                embed(self._dataset(split), str(self.out / "clip"), bar=bar)
        for name in ("prior", "decoder", "up64", "up256"):
            self._train(name)
        self._write_cascade()
        with self._timed("pictures"):
            results = self._evaluate()
        return self._report(results)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the DATASETs that are made."""
        return _OWN_SPLITS if self.data is not None else tuple(self._parts)

    @cached_property
    def _parts(self) -> dict[str, Part]:
        """The synthetic scenes, by name."""
        return {part.name: part for part in parts_of(self.config.corpus)}

    def _corpus(self) -> None:
        if self.data is not None:
            try:
                split_pairs(self.data, self.out / "input")
            except UserError:  # nothing that could be begun with: the folder is free for better
                shutil.rmtree(self.out / "input", ignore_errors=True)
                (self.out / "demo.json").unlink()
                raise
            return
        seed = self.config.corpus.seed
        with Progress("corpus", self._count_of_input(), "scenes") as bar:
            for name, part in self._parts.items():
                write_scenes(
                    self.out / "input" / name,
                    part.count,
                    seed,
                    "webdataset",
                    part.split,
                    bar=bar,
                    kinds=part.kinds,
                )

    def _count_of_input(self) -> int:
        """Pairs of all splits."""
        if self.data is None:
            return sum(part.count for part in self._parts.values())
        return sum(split_counts(self.out / "input"))

    def _prepare(self, split: str, bar: Progress) -> None:
        source = self.out / "input" / (split if self.data is None else f"{split}.parquet")
        stored = _STORED if self.data is None else _STORED_OWN
        prepare([source], self._dataset(split), "none", stored, bar=bar)

    @staticmethod
    def _ray(needed: bool) -> AbstractContextManager[object]:
        """One Ray for all splits of a stage; it is gone before training wants cores and memory."""
        return cluster() if needed else nullcontext()

    def _is_prepared(self, split: str) -> bool:
        return (self._dataset(split) / DATASET_FILE).is_file()

    def _is_embedded(self, split: str) -> bool:
        dataset = self._dataset(split)
        return is_embedded(dataset, read_dataset(dataset), find_clip(str(self.out / "clip")))

    def _dataset(self, split: str) -> Path:
        return self.out / "data" / split

    def _train(self, name: str) -> None:
        with self._timed(name):
            train(
                load_train_config(
                    self.configs / f"{name}.yaml",
                    [
                        f"out={json.dumps(str(self.out / name))}",
                        f"data.paths=[{json.dumps(str(self._dataset('train')))}]",
                        *(
                            [f"clip={json.dumps(str(self.out / 'clip'))}"]
                            if name in ("prior", "decoder")
                            else []
                        ),
                    ],
                )
            )

    def _write_cascade(self) -> None:
        sampling = self.config.sampling
        steps = sampling.upsampler_steps
        config = CascadeConfig(
            clip="clip",
            prior=PriorPart(
                run="prior",
                steps=sampling.prior_steps,
                guidance=sampling.prior_guidance,
                candidates=sampling.prior_candidates,
            ),
            decoder=DecoderPart(
                run="decoder", steps=sampling.decoder_steps, guidance=sampling.decoder_guidance
            ),
            upsamplers=tuple(UpsamplerPart(run=run, steps=steps) for run in ("up64", "up256")),
        )
        write_atomic(self.out / "cascade.yaml", dump_config(config))

    def _evaluate(self) -> dict[str, Any]:
        """Every figure of the report, and the pictures behind them."""
        cascade = load_cascade(load_cascade_config(self.out))
        limits, sampling = self.config.report, self.config.sampling
        heldout = read_pairs(self._dataset("heldout"))
        final, unseen = self._judged(heldout)
        asked = [name for name in self.splits if name in BEYOND]
        beyond: dict[str, Pairs] = {
            name: distinct(read_pairs(self._dataset(name))) for name in asked
        }
        measured = min(limits.upsampled, len(heldout))
        counts = self._counts(final, unseen) | {name: len(p) for name, p in beyond.items()}
        drawn = sum(count for name, count in counts.items() if self._drawn(name).is_file())
        total = sum(counts.values()) + measured * len(cascade.upsamplers)
        with Progress("pictures", total, "pictures", drawn) as bar:
            pictures = draw(cascade, final, from_caption, sampling, self._drawn("final"), bar)
            mean = mean_embedding(self._dataset("train"))
            prior = prior_scores(cascade, final, mean, sampling.seed, len(final))
            more = {
                name: draw(cascade, pairs, from_caption, sampling, self._drawn(name), bar)
                for name, pairs in beyond.items()
            }
            self._write_sheet({"final": pictures, **more}, {"final": final, **beyond})
            return {
                **self._scene_results(cascade, pictures, final, unseen, bar),
                "beyond": {name: group_scores(more[name], pairs) for name, pairs in beyond.items()},
                "prior": prior,
                "prior_cosine": prior["cosine"],
                "prior_recall_at_1": prior["recall_at_1"],
                "upsamplers": upsampler_scores(cascade, heldout, measured, sampling.seed, bar),
                "clip_score": clip_scores(cascade, pictures, final),
            }

    def _write_sheet(self, pictures: dict[str, Tensor], pairs: dict[str, Pairs]) -> None:
        """pictures.png: some of the final pictures, then some of each kind beyond training."""
        shown, captions = list[Tensor](), list[str]()
        for name, group in pairs.items():
            most = self.config.report.shown if name == "final" else _SHOWN_BEYOND
            chosen = spread(len(group), min(most, len(group)))
            shown.append(pictures[name][chosen])
            captions += group.take(chosen).captions
        write_pictures(torch.cat(shown), captions, self.out / "pictures.png")

    def _judged(self, heldout: Pairs) -> tuple[Pairs, Pairs | None]:
        """The pairs whose captions are drawn, no caption twice, and those of unseen scenes."""
        limits = self.config.report
        heldout = distinct(heldout)
        if self.data is not None:
            return heldout.take(range(min(len(heldout), limits.single + limits.pair))), None
        unseen = distinct(read_pairs(self._dataset("unseen")))
        final = balanced(heldout, limits.single, limits.pair)
        return final, unseen.take(range(min(limits.unseen, len(unseen))))

    def _counts(self, final: Pairs, unseen: Pairs | None) -> dict[str, int]:
        """How many pictures are drawn under which name."""
        if unseen is None:
            return {"final": len(final)}
        controls = min(self.config.report.controls, len(final))
        drawn = {"final": len(final), "unseen": len(unseen)}
        return drawn | {f"control_{name}": controls for name in CONTROLS}

    def _scene_results(
        self,
        cascade: Cascade,
        pictures: Tensor,
        final: Pairs,
        unseen: Pairs | None,
        bar: Progress,
    ) -> dict[str, Any]:
        """Scene scores and controls; none for pictures that nobody can read a scene from."""
        if unseen is None:
            return {"scores": None, "controls": None}
        limits, sampling = self.config.report, self.config.sampling
        others = draw(cascade, unseen, from_caption, sampling, self._drawn("unseen"), bar)
        seen, not_seen = scene_scores(pictures, final), scene_scores(others, unseen)
        chosen = spread(len(final), min(limits.controls, len(final)))
        return {
            "scores": {
                group: {
                    "seen": value["seen"],
                    "unseen": not_seen[group]["unseen"],
                    "count": value["count"] + not_seen[group]["count"],
                    "count_seen": value["count"],
                    "count_unseen": not_seen[group]["count"],
                }
                for group, value in seen.items()
            },
            "controls": control_scores(
                cascade,
                pictures[chosen],
                final.take(chosen),
                self.config,
                self.out / "pictures",
                bar,
            ),
        }

    def _drawn(self, name: str) -> Path:
        return self.out / "pictures" / f"{name}.npy"

    def _report(self, results: dict[str, Any]) -> dict[str, Any]:
        _announce("report")
        report = {
            "version": 1,
            "data": None if self.data is None else str(self.data),
            "configs": self.configs.name,
            **results,
            "seconds": {**self._seconds, "total": sum(self._seconds.values())},
            "versions": versions(),
        }
        write_json(self.out / "report.json", report)
        write_report(self.out, report)
        return report

    @cached_property
    def _seconds(self) -> dict[str, float]:
        """Seconds that each stage took, over all calls."""
        path = self.out / "seconds.json"
        return dict(read_json(path)) if path.is_file() else {}

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        _announce(stage)
        begun = time.monotonic()
        try:
            yield
        finally:
            spent = self._seconds.get(stage, 0.0) + time.monotonic() - begun
            self._seconds[stage] = round(spent, 2)
            if (self.out / "demo.json").is_file():
                with suppress(OSError):  # a full disk has been told by the stage itself
                    write_json(self.out / "seconds.json", self._seconds)


@contextmanager
def _removed_if_empty(out: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        with suppress(OSError):
            out.rmdir()
        raise


def _announce(stage: str) -> None:
    print(f"[{_STAGES.index(stage) + 1}/{len(_STAGES)}] {stage}", file=sys.stderr, flush=True)
