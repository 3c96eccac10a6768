"""Held-out pairs of a prepared DATASET, as the report needs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_pipeline.scenes import Split, scene
from data_pipeline.schema.scenes import Kind, Scene
from trainer.loader.pictures import decode_square
from trainer.loader.shards import whole_dataset


@dataclass(frozen=True)
class Pairs:
    """Captions with their true embeddings [N, D], and what the scenes are, where that is known."""

    dataset: Path
    indices: tuple[int, ...]  # places in the DATASET
    captions: tuple[str, ...]
    image_embedding: Tensor
    text_embedding: Tensor
    truths: tuple[Scene, ...] | None

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, chosen: Sequence[int]) -> Pairs:
        """Some of the pairs."""
        return Pairs(
            self.dataset,
            tuple(self.indices[i] for i in chosen),
            tuple(self.captions[i] for i in chosen),
            self.image_embedding[list(chosen)],
            self.text_embedding[list(chosen)],
            None if self.truths is None else tuple(self.truths[i] for i in chosen),
        )

    def pictures(self, side: int, count: int) -> Tensor:
        """The first `count` stored pictures, uint8 [N, 3, side, side]."""
        chosen = np.array(self.indices[:count])
        shards = whole_dataset(self.dataset)
        decoded = [
            decode_square(jpeg, side, partial(shards.name, int(i)))
            for i, jpeg in zip(chosen, shards.jpegs(chosen), strict=True)
        ]
        return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2)


def read_pairs(dataset: Path, truth: tuple[int, Split, tuple[Kind, ...]] | None) -> Pairs:
    """All pairs of a DATASET; `truth` is (seed, split, kinds) when they are synthetic scenes.

    Scenes are functions of these and their index and none is rejected, so that sample i is scene i.
    """
    shards = whole_dataset(dataset)
    indices = np.arange(shards.starts[-1])
    image, text = (torch.from_numpy(rows).float() for rows in shards.embeddings(indices))
    truths = None
    if truth is not None:
        seed, split, kinds = truth
        truths = tuple(scene(seed, int(i), split, kinds)[0] for i in indices)
    return Pairs(
        dataset,
        tuple(indices.tolist()),
        tuple(shards.captions(indices)),
        image,
        text,
        truths,
    )


def distinct(pairs: Pairs) -> Pairs:
    """The pairs without those whose caption an earlier one has."""
    first: dict[str, int] = {}
    for index, caption in enumerate(pairs.captions):
        first.setdefault(caption, index)
    return pairs.take(list(first.values()))


def balanced(pairs: Pairs, single: int, pair: int) -> Pairs:
    """The first `single` scenes of one object and the first `pair` scenes of two."""
    assert pairs.truths is not None
    counts = {1: single, 2: pair}
    chosen = []
    for index, truth in enumerate(pairs.truths):
        if counts[len(truth.objects)] > 0:
            counts[len(truth.objects)] -= 1
            chosen.append(index)
    return pairs.take(chosen)


def mean_embedding(dataset: Path) -> Tensor:
    """The mean image embedding of a DATASET. [D]"""
    shards = whole_dataset(dataset)
    total = int(shards.starts[-1])
    parts = np.array_split(np.arange(total), max(total // 10_000, 1))
    sums = [shards.embeddings(part)[0].sum(axis=0, dtype=np.float64) for part in parts]
    return torch.from_numpy(np.sum(sums, axis=0) / total).float()
