"""Samples as tensors: decoded, cropped, tokenised, cached if asked."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from base.stores import StorePath
from trainer.batch import Batch, Needs
from trainer.config import DataConfig
from trainer.loader.arrays import Arrays, empty_arrays
from trainer.loader.catalogue import Catalogue, Pool
from trainer.loader.groups import Ahead, Berths, Raw, Read, read_raw
from trainer.loader.order import GroupKey, Ints
from trainer.loader.pictures import Pixels, decode_square
from trainer.loader.shares import Share
from trainer.loader.vectors import Gather, Vectors, empty_vectors
from trainer.loader.walk import Walk, Way
from trainer.rng import SampleRandom

_THREADS = 1  # that reads ahead, for each pool: the disk is told of all that it will wait for
_THREADS_IN_STORE = 16  # each waits much longer than it works


class SampleReader:
    """Makes batches of the samples at given positions. For one thread at a time."""

    def __init__(self, config: DataConfig, needs: Needs, seed: int) -> None:
        self.catalogue = Catalogue(config, seed)
        self._needs, self._seed = needs, seed
        self._cache = _Cache(needs, self.catalogue.epoch_size, config)

    @cached_property
    def dim(self) -> int:
        """The embeddings' width; 0 when none are needed."""
        return self.catalogue.pools[0].shards.dim() if self._needs.embeddings else 0

    def batch(self, positions: Ints) -> Batch:
        """The samples at `positions` (int64 [B], in any order), read for this call alone."""
        arrays = empty_arrays(self._needs, self.dim, len(positions))
        for number, chosen, draws in self.catalogue.mixture.split(positions):
            pool, wanted = self.catalogue.pools[number], np.unique(draws)
            vectors = self._vectors(len(wanted))
            raw = self._read(pool, wanted, pool.order.samples(wanted), vectors)
            places = raw.places[np.searchsorted(wanted, draws)]
            self.put(arrays, chosen, positions[chosen], raw, places)
            gather = Gather(arrays.vectors(), chosen)
            gather.add(np.arange(len(chosen)), vectors, places)
            gather.flush()
        return arrays.batch(positions, slice(None))

    def walk(self, share: Share, first: int, end: int) -> Walk:
        """Reads one worker's part of the positions `first` … `end` - 1, in their order."""

        def wanted(number: int) -> Read:
            pool, positions_of = self.catalogue.pools[number], self.catalogue.mixture.positions

            def read(key: GroupKey, vectors: Vectors | None) -> Raw | None:
                group = pool.order.group(key)
                positions = positions_of(number, group.draws)
                own = share.owns(positions) & (first <= positions) & (positions < end)
                if not own.any():
                    return None
                return self._read(pool, group.draws[own], group.samples[own], vectors)

            return read

        ways = []
        for number, pool in enumerate(self.catalogue.pools):
            order = pool.order
            berths = Berths(self._vectors(Berths.EACH * order.streams * order.most), order.most)
            ahead = Ahead(wanted(number), order.following, _threads(pool), berths)
            ways.append(Way(order, ahead, self.put, self._needs.embeddings_alone))
        return Walk(self.catalogue.mixture, ways)

    def _vectors(self, rows: int) -> Vectors | None:
        """Memory for embeddings, if they are wanted."""
        return empty_vectors(rows, self.dim) if self._needs.embeddings else None

    def _read(self, pool: Pool, draws: Ints, samples: Ints, vectors: Vectors | None) -> Raw:
        cached = self._cache.has_pictures
        return read_raw(pool.shards, self._needs, draws, samples, pool.first, cached, vectors)

    def put(self, arrays: Arrays, rows: Ints, positions: Ints, raw: Raw, places: Ints) -> None:
        """Put what lies at `places` of `raw` into `rows`, the samples at `positions`; embeddings
        are gathered apart."""
        if arrays.image is not None:
            self._put_pictures(arrays.image, rows, positions, raw, places)
        if raw.norms is not None:
            for into, norms in zip((arrays.image_norm, arrays.text_norm), raw.norms.T, strict=True):
                assert into is not None
                into[rows] = norms[places]
        if arrays.tokens is not None:
            for row, place in zip(rows.tolist(), places.tolist(), strict=True):
                arrays.tokens[row] = self._tokens(int(raw.numbers[place]), raw.captions[place])

    def _put_pictures(
        self, image: Pixels, rows: Ints, positions: Ints, raw: Raw, places: Ints
    ) -> None:
        side, crop = self._needs.image_size or 0, self._needs.crop
        corners = [[0, 0]] * len(rows)
        if crop is not None:
            random = SampleRandom(self._seed, torch.from_numpy(positions))
            corners = random.integers("loader.crop", side - crop + 1, 2).tolist()
        shown = crop or side
        chosen = zip(rows.tolist(), places.tolist(), corners, strict=True)
        for row, place, (top, left) in chosen:
            whole = self._picture(int(raw.numbers[place]), raw.jpegs[place])  # [3, S, S]
            image[row] = whole[:, top : top + shown, left : left + shown]

    def _picture(self, number: int, jpeg: bytes | None) -> Pixels:
        whole = self._cache.picture(number)
        if whole is None:
            assert jpeg is not None, "the cache forgets nothing"
            name = partial(self.catalogue.name, number)
            whole = decode_square(jpeg, self._needs.image_size or 0, name)
            whole = whole.transpose(2, 0, 1)
            self._cache.keep_picture(number, whole)
        return whole

    def _tokens(self, number: int, caption: str) -> NDArray[np.int32]:
        row = self._cache.tokens(number)
        if row is None:
            row = self._tokenizer([caption])[0].numpy().astype(np.int32)
            self._cache.keep_tokens(number, row)
        return row

    @cached_property
    def _tokenizer(self) -> Any:
        from open_clip.tokenizer import SimpleTokenizer  # slow to import, needless for pictures

        return SimpleTokenizer(context_length=self._needs.context_length)


def _threads(pool: Pool) -> int:
    in_store = any(isinstance(ref.root, StorePath) for ref in pool.shards.refs)
    return _THREADS_IN_STORE if in_store else _THREADS


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

    def has_pictures(self, samples: Ints) -> NDArray[np.bool_]:
        """Which of `samples` have their picture here."""
        count = len(self._has_picture)
        if count == 0:
            return np.zeros(len(samples), dtype=np.bool_)
        return (samples < count) & self._has_picture[np.minimum(samples, count - 1)]

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
