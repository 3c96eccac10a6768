"""Samples as tensors: what stands at given positions, cropped, tokenised, cached if asked."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.batch import Batch, Needs
from trainer.config import DataConfig
from trainer.loader.order import Ints, Order
from trainer.loader.pictures import Pixels, decode_square
from trainer.loader.shards import Shards
from trainer.rng import SampleRandom


class SampleReader:
    """Reads the samples at given positions. For one thread at a time."""

    def __init__(self, config: DataConfig, needs: Needs, seed: int) -> None:
        self._needs, self._seed = needs, seed
        self.shards = Shards(config)
        sizes = [ref.size for ref in self.shards.refs]
        self.order = Order(sizes, seed, config.shuffle_block)
        self._cache = _Cache(needs, self.order.epoch_size, config)

    def batch(self, positions: Ints) -> Batch:
        """The samples at `positions`, int64 [B], on the CPU."""
        samples = self.order.samples(positions)
        needs = self._needs
        places = torch.from_numpy(positions)
        image = tokens = image_embedding = text_embedding = None
        if needs.image_size is not None:
            image = torch.from_numpy(self._pictures(samples, places))
        if needs.tokens:
            tokens = torch.from_numpy(self._tokens(samples).astype(np.int64))
        if needs.embeddings:
            image_rows, text_rows = self.shards.embeddings(samples)
            image_embedding, text_embedding = map(torch.from_numpy, (image_rows, text_rows))
        return Batch(places, image, tokens, image_embedding, text_embedding)

    def _pictures(self, samples: Ints, places: torch.Tensor) -> Pixels:
        side, crop = self._needs.image_size or 0, self._needs.crop
        corners = [(0, 0)] * len(samples)
        if crop is not None:
            draws = SampleRandom(self._seed, places).integers("loader.crop", side - crop + 1, 2)
            corners = [(int(top), int(left)) for top, left in draws.tolist()]
        shown = crop or side
        result = np.empty((len(samples), 3, shown, shown), dtype=np.uint8)  # [B, 3, S, S]
        for index, (sample, (top, left)) in enumerate(zip(samples.tolist(), corners, strict=True)):
            whole = self._cache.picture(sample)
            if whole is None:
                whole = decode_square(self.shards.jpeg(sample), side, f"sample {sample}")
                whole = whole.transpose(2, 0, 1)  # [3, S, S]
                self._cache.keep_picture(sample, whole)
            result[index] = whole[:, top : top + shown, left : left + shown]
        return result

    def _tokens(self, samples: Ints) -> NDArray[np.int32]:
        return np.stack([self._tokens_of(sample) for sample in samples.tolist()])

    def _tokens_of(self, sample: int) -> NDArray[np.int32]:
        row = self._cache.tokens(sample)
        if row is None:
            caption = self.shards.caption(sample)
            row = self._tokenizer([caption])[0].numpy().astype(np.int32)
            self._cache.keep_tokens(sample, row)
        return row

    @cached_property
    def _tokenizer(self) -> Any:
        from open_clip.tokenizer import SimpleTokenizer  # slow to import, needless for pictures

        return SimpleTokenizer(context_length=self._needs.context_length)


class _Cache:
    """Whole pictures and tokens of the first samples that fit the budget, from their first use."""

    def __init__(self, needs: Needs, samples: int, config: DataConfig) -> None:
        side = needs.image_size or 0
        picture = 3 * side * side
        row = 4 * needs.context_length if needs.tokens else 0
        fits = config.cache_bytes // max(picture + row, 1)
        count = min(samples, fits) if config.cache == "ram" else 0
        # Pages that are never written cost nothing.
        self._pictures = np.empty((count if picture else 0, 3, side, side), dtype=np.uint8)
        self._tokens = np.empty((count if row else 0, needs.context_length), dtype=np.int32)
        self._has_picture = np.zeros(len(self._pictures), dtype=np.bool_)
        self._has_tokens = np.zeros(len(self._tokens), dtype=np.bool_)

    def picture(self, sample: int) -> Pixels | None:
        """uint8 [3, S, S], if it is kept."""
        kept = sample < len(self._has_picture) and self._has_picture[sample]
        return self._pictures[sample] if kept else None

    def keep_picture(self, sample: int, pixels: Pixels) -> None:
        _put(self._pictures, self._has_picture, sample, pixels)

    def tokens(self, sample: int) -> NDArray[np.int32] | None:
        """int32 [L], if they are kept."""
        kept = sample < len(self._has_tokens) and self._has_tokens[sample]
        return self._tokens[sample] if kept else None

    def keep_tokens(self, sample: int, row: NDArray[np.int32]) -> None:
        _put(self._tokens, self._has_tokens, sample, row)


def _put(rows: NDArray[Any], has: NDArray[np.bool_], sample: int, value: NDArray[Any]) -> None:
    if sample < len(has):
        rows[sample] = value
        has[sample] = True


def gather_positions(cuts: Sequence[tuple[int, int]]) -> list[Ints]:
    """The positions of each [first, last)."""
    return [np.arange(first, last, dtype=np.int64) for first, last in cuts]
