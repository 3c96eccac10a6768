"""The pictures that an evaluation asks for: one of each caption, and several of a few."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_pipeline.schema.dataset import KEYS_PER_SHARD, MAX_SHARDS
from trainer.sampling import uses
from trainer.sampling.cascade import Cascade, load_cascade
from trainer.sampling.config import CascadeConfig
from trainer.sampling.requests import Drawn, Request

from .pairs import Pairs

_MOST_SAMPLES = KEYS_PER_SHARD * MAX_SHARDS  # of a DATASET


class Networks:
    """A cascade's networks, loaded when they are first asked for and then kept."""

    def __init__(self) -> None:
        self._loaded: Cascade | None = None

    def at(self, config: CascadeConfig) -> Cascade:
        """The cascade with the decoder's settings of `config`, which names the same checkpoints as
        at other times."""
        if self._loaded is None:
            self._loaded = load_cascade(config)
        decoder = replace(self._loaded.decoder, settings=config.decoder)
        return replace(self._loaded, config=config, decoder=decoder)


def of_pairs(pairs: Pairs, seed: int, data: str, repeats: int = 1) -> Request:
    """`repeats` pictures of each caption; `data` tells the DATASET by its fingerprint.

    A picture's noise follows from its caption's place in the DATASET, among whichever others; the
    first of several is the one that there is without others.
    """

    def draw(cascade: Cascade, positions: Sequence[int]) -> Drawn:
        split = [divmod(position, repeats) for position in positions]
        places = [pairs.indices[row] + number * _MOST_SAMPLES for row, number in split]
        captions = [pairs.captions[row] for row, _ in split]
        return Drawn(uses.text(cascade, captions, cascade.random(seed, places)))

    about = [
        {"caption": caption, "index": index}
        for index, caption in zip(pairs.indices, pairs.captions, strict=True)
        for _ in range(repeats)
    ]
    return Request("evaluate", seed, about, draw, {"data": data}, columns=max(repeats, 8))


def read_drawn(paths: Sequence[Path]) -> Tensor:
    """Pictures of one size, uint8 [N, 3, S, S]."""
    read = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    return torch.from_numpy(np.stack(read)).permute(0, 3, 1, 2)
