"""Held-out pairs of a DATASET, as what is measured needs them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from base.errors import UserError, one_line
from base.hashing import stable_hash
from base.places import Place
from data_pipeline.schema import dataset as schema
from data_pipeline.schema.scenes import Scene
from trainer.loader.order import Ints
from trainer.loader.pictures import decode_square
from trainer.loader.shards import Shards, whole_dataset
from trainer.rng import SampleRandom

_SCENE = "scene"  # the column in which `unclip data synth` tells what a picture shows


@dataclass(frozen=True)
class Pairs:
    """Captions with their true embeddings [N, D], and what the scenes are, where that is known."""

    dataset: Place
    indices: tuple[int, ...]  # places in the DATASET, ascending
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

    def pictures(self, side: int, count: int | None = None) -> Tensor:
        """The first `count` stored pictures (all of them), uint8 [N, 3, side, side]."""
        return read_pictures(whole_dataset(self.dataset), np.array(self.indices[:count]), side)

    def random(self, seed: int, device: torch.device) -> SampleRandom:
        """The draws that belong to the pairs: by their places, among whichever pairs."""
        return SampleRandom(seed, torch.tensor(self.indices, device=device))


def read_pictures(shards: Shards, indices: Ints, side: int) -> Tensor:
    """Stored pictures at ascending places, uint8 [N, 3, side, side]."""
    decoded = [
        decode_square(jpeg, side, partial(shards.name, int(i)))
        for i, jpeg in zip(indices, shards.jpegs(indices), strict=True)
    ]
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2)


def read_pairs(dataset: Place, embeddings: str | None = None, indices: Ints | None = None) -> Pairs:
    """Pairs of a DATASET, all or those at ascending `indices`; `embeddings`: a further set's name.

    Raises:
        UserError: it is no whole DATASET, or has no embeddings.
    """
    shards = whole_dataset(dataset, embeddings)
    if indices is None:
        indices = np.arange(shards.starts[-1])
    image, text = (torch.from_numpy(rows).float() for rows in shards.embeddings(indices))
    return Pairs(
        dataset,
        tuple(indices.tolist()),
        tuple(shards.captions(indices)),
        image,
        text,
        _truths(shards, indices),
    )


def distinct(pairs: Pairs) -> Pairs:
    """The pairs without those whose caption an earlier one has."""
    return pairs.take(_first_of_each(pairs.captions))


def choose(dataset: Place, count: int | None, most: int) -> Ints:
    """Places of `count` captions of a DATASET, all distinct, ascending; None: at most `most`.

    A larger count has those of a smaller one among its own.
    Raises:
        UserError: there are not so many.
    """
    shards = whole_dataset(dataset)
    first = _first_of_each(shards.captions(np.arange(shards.starts[-1])))
    if count is not None and count > len(first):
        raise UserError(f"--count: got {count}, {dataset} has {len(first)} distinct captions")
    ordered = sorted(first, key=lambda index: stable_hash("evaluation", index))
    return np.array(sorted(ordered[: most if count is None else count]))


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


def mean_embedding(dataset: Place, embeddings: str | None = None) -> Tensor:
    """The mean image embedding of a DATASET. [D]"""
    shards = whole_dataset(dataset, embeddings)
    total = int(shards.starts[-1])
    parts = np.array_split(np.arange(total), max(total // 10_000, 1))
    sums = [shards.embeddings(part)[0].sum(axis=0, dtype=np.float64) for part in parts]
    return torch.from_numpy(np.sum(sums, axis=0) / total).float()


def _first_of_each(captions: Sequence[str]) -> list[int]:
    first: dict[str, int] = {}
    for index, caption in enumerate(captions):
        first.setdefault(caption, index)
    return list(first.values())


def _truths(shards: Shards, indices: Ints) -> tuple[Scene, ...] | None:
    """What the pictures of a synthetic corpus show; None where the DATASET does not tell."""
    told: list[str | None] = []
    for ref in shards.refs:
        path = schema.metadata_path(ref.root, ref.shard)
        try:
            with path.open("rb") as file:
                parquet = pq.ParquetFile(file)
                if _SCENE not in parquet.schema_arrow.names:
                    return None
                told += parquet.read([_SCENE])[0].to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{path}: cannot be read ({one_line(error)})") from error
    try:
        return tuple(Scene.from_json(json.loads(told[i] or "")) for i in indices)
    except (TypeError, ValueError):  # somebody's own column of that name
        return None
