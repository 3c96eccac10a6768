"""The shards that a run reads: pictures by byte offset, captions, embeddings."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from base.errors import NothingUsable, UserError
from data_pipeline.schema import dataset as schema
from trainer.config import DataConfig

T = TypeVar("T")
Floats = NDArray[np.float32]

_OPEN_SHARDS = 64  # metadata, tars and embeddings held open at once


@dataclass(frozen=True)
class ShardRef:
    """One shard of one DATASET."""

    root: Path
    shard: int
    size: int  # samples, > 0


@dataclass(frozen=True)
class Index:
    """Where a shard's members lie in its tar, and its captions."""

    jpg_offset: NDArray[np.int64]
    jpg_length: NDArray[np.int64]
    captions: Sequence[str]


class Shards:
    """All shards of a run's DATASETs, one after another. For one thread at a time."""

    def __init__(self, config: DataConfig) -> None:
        """Read the DATASETs' totals; nothing else is opened before it is asked for.

        Raises:
            UserError: a folder is no complete DATASET.
            NothingUsable: the DATASETs hold no sample.
        """
        self._embeddings = config.embeddings
        self.infos = [schema.read_dataset(root) for root in config.paths]
        self.refs = [
            ShardRef(root, shard, size)
            for root, info in zip(config.paths, self.infos, strict=True)
            for shard, size in enumerate(schema.shard_sizes(root, info))
            if size > 0
        ]
        if not self.refs:
            raise NothingUsable(f"{', '.join(map(str, config.paths))}: no sample in it")
        self.starts = np.concatenate([[0], np.cumsum([ref.size for ref in self.refs])])
        self._indices: _Kept[Index] = _Kept(self._read_index, lambda index: None)
        self._tars: _Kept[int] = _Kept(self._open_tar, os.close)
        self._images: _Kept[NDArray[np.float16]] = _Kept(
            lambda number: self._open_embeddings(number, schema.img_emb_path), lambda array: None
        )
        self._texts: _Kept[NDArray[np.float16]] = _Kept(
            lambda number: self._open_embeddings(number, schema.text_emb_path), lambda array: None
        )

    def place(self, sample: int) -> tuple[int, int]:
        """The (number of the shard, row in it) of a sample."""
        number = int(np.searchsorted(self.starts, sample, side="right")) - 1
        return number, sample - int(self.starts[number])

    def jpeg(self, sample: int) -> bytes:
        """The picture's file.

        Raises:
            UserError: the tar is shorter than its metadata say.
        """
        number, row = self.place(sample)
        index = self._indices(number)
        length = int(index.jpg_length[row])
        data = os.pread(self._tars(number), length, int(index.jpg_offset[row]))
        if len(data) != length:
            ref = self.refs[number]
            raise UserError(f"{schema.tar_path(ref.root, ref.shard)}: ends early; verify the data")
        return data

    def caption(self, sample: int) -> str:
        """The first caption."""
        number, row = self.place(sample)
        return self._indices(number).captions[row]

    def embeddings(self, samples: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Image and text embeddings, fp32 [B, D] each."""
        numbers = np.searchsorted(self.starts, samples, side="right") - 1
        rows = samples - self.starts[numbers]
        parts: list[Floats] = []
        for opened in (self._images, self._texts):
            dim = opened(int(numbers[0])).shape[1]
            result = np.empty((len(samples), dim), dtype=np.float32)
            for number in np.unique(numbers):
                chosen = numbers == number
                result[chosen] = opened(int(number))[rows[chosen]]
            parts.append(result)
        return parts[0], parts[1]

    def _read_index(self, number: int) -> Index:
        ref = self.refs[number]
        path = schema.metadata_path(ref.root, ref.shard)
        try:
            table = pq.read_table(path, columns=["jpg_offset", "jpg_length", "caption"])
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
        if len(table) != ref.size:
            raise UserError(f"{path}: got {len(table)} rows, expected {ref.size}; verify the data")
        return Index(
            table["jpg_offset"].to_numpy(),
            table["jpg_length"].to_numpy(),
            table["caption"].to_pylist(),
        )

    def _open_tar(self, number: int) -> int:
        ref = self.refs[number]
        path = schema.tar_path(ref.root, ref.shard)
        try:
            return os.open(path, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from error

    def _open_embeddings(
        self, number: int, path_of: Callable[[Path, int, str | None], Path]
    ) -> NDArray[np.float16]:
        ref = self.refs[number]
        path = path_of(ref.root, ref.shard, self._embeddings)
        if not path.is_file():
            raise UserError(f"{path}: missing; make it with `unclip data embed`")
        array: NDArray[np.float16] = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.ndim != 2 or len(array) != ref.size:
            raise UserError(f"{path}: got shape {array.shape}, expected {ref.size} rows")
        return array


class _Kept(Generic[T]):
    """The most recently used results of `load`, by number; the others are let go by `close`."""

    def __init__(self, load: Callable[[int], T], close: Callable[[T], None]) -> None:
        self._load, self._close = load, close
        self._kept: OrderedDict[int, T] = OrderedDict()

    def __call__(self, number: int) -> T:
        if number in self._kept:
            self._kept.move_to_end(number)
            return self._kept[number]
        self._kept[number] = loaded = self._load(number)
        if len(self._kept) > _OPEN_SHARDS:
            self._close(self._kept.popitem(last=False)[1])
        return loaded
