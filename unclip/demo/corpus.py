"""The parts of the demo's synthetic corpus: trained on, held out, and only reported on."""

from __future__ import annotations

from dataclasses import dataclass

from data_pipeline.scenes import Split
from data_pipeline.schema.scenes import USUAL_KINDS, Kind

from .config import CorpusConfig

BEYOND: tuple[Kind, ...] = ("crowd", "sign")  # kinds that training does not show


@dataclass(frozen=True)
class Part:
    """One folder of scenes and the DATASET made of it."""

    name: str
    split: Split
    kinds: tuple[Kind, ...]
    count: int


def parts_of(corpus: CorpusConfig) -> tuple[Part, ...]:
    """The three splits of one and two objects, then the held-out captions of each kind beyond."""
    usual = (
        Part("train", "train", USUAL_KINDS, corpus.train),
        Part("heldout", "heldout", USUAL_KINDS, corpus.heldout),
        Part("unseen", "unseen", USUAL_KINDS, corpus.unseen),
    )
    counts = {kind: getattr(corpus, kind) for kind in BEYOND}
    more = (Part(kind, "heldout", (kind,), count) for kind, count in counts.items() if count)
    return (*usual, *more)
