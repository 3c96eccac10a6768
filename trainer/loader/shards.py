"""The shards that a run reads: pictures by byte offset, captions, embeddings, in long reads."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from base.errors import NothingUsable, UserError, one_line
from base.npy import npy_header
from base.places import Part, Place, parts_of
from data_pipeline.schema import dataset as schema
from data_pipeline.schema.selection import selected_keys
from trainer.loader.kept import Kept
from trainer.loader.order import Ints
from trainer.loader.vectors import Halves, Norms, Vectors, empty_vectors

_GAP = 64 << 10  # bytes that are read for nothing rather than asking twice
_SPAN = 16 << 20  # the longest read
_INDEX = ["jpg_offset", "jpg_length", "caption"]
_NORMS = ["img_norm", "text_norm"]
_UNIT = 1e-3  # no projection of a CLIP is so near to length 1 in all rows of a shard
_HEADER = 4096  # more than any npy header of ours
_OPEN = 16  # shards whose files are open at once

_Of = tuple[int, slice, Ints]  # a shard's number, which of the wanted samples are its, their rows


@dataclass(frozen=True)
class ShardRef:
    """One shard of one DATASET, or the part of it that a selection keeps."""

    root: Place
    shard: int
    rows: int  # of the whole shard
    picked: Ints | None = None  # rows that the selection keeps, ascending; None: all

    @property
    def size(self) -> int:
        """Samples, > 0."""
        return self.rows if self.picked is None else len(self.picked)


class Index(NamedTuple):
    """Where a shard's pictures lie in its tar, and its captions."""

    jpg_offset: Ints
    jpg_length: Ints
    captions: pa.ChunkedArray


class Header(NamedTuple):
    """Of an npy file of embeddings, float16 [rows, D]."""

    path: Place
    offset: int
    dim: int


class Shards:
    """Reads samples by number, in the concatenation of all shards: ascending, so that neighbours
    come in long reads. For any number of threads.
    """

    def __init__(self, refs: Sequence[ShardRef], embeddings: str | None, kept: int = 256) -> None:
        """`embeddings`: a further set's name; `kept`: indices of shards held in memory."""
        self.refs = refs
        self.starts = np.concatenate([[0], np.cumsum([ref.size for ref in refs])])
        self._embeddings = embeddings
        self._indices: Kept[int, Index] = Kept(self._read_index, kept)
        self._headers: Kept[int, Header] = Kept(self._read_header, 8 * kept)
        self._norms: Kept[int, Norms] = Kept(self._read_norms, kept)

    def jpegs(self, samples: Ints) -> list[bytes]:
        """The pictures' files of `samples`, ascending.

        Raises:
            UserError: a tar is missing, or shorter than its metadata say.
        """
        found: list[bytes] = []
        for shards in _portions(self._by_shard(samples)):
            with ExitStack() as files:
                wanted = [
                    each
                    for number, _, rows in shards
                    for each in self._wanted_jpegs(files, number, rows)
                ]
                for each in wanted:
                    found += each.read()
        return found

    def name(self, sample: int) -> str:
        """Where the picture of `sample` is stored."""
        ((number, _, rows),) = self._by_shard(np.array([sample]))
        ref, key = self.refs[number], schema.sample_key(self.refs[number].shard, int(rows[0]))
        return f"{schema.tar_path(ref.root, ref.shard)}: {key}.jpg"

    def captions(self, samples: Ints) -> list[str]:
        """The captions of `samples`, ascending."""
        found: list[str] = []
        for number, _, rows in self._by_shard(samples):
            found += self._indices(number).captions.take(pa.array(rows)).to_pylist()
        return found

    def embeddings(self, samples: Ints) -> Vectors:
        """Image and text embeddings of `samples`, ascending: fp16 [n, D] each, as stored.

        Raises:
            UserError: a file is missing, or is not what it should be.
        """
        found = empty_vectors(len(samples), self.dim())
        self.read_embeddings(samples, found)
        return found

    def read_embeddings(self, samples: Ints, into: Vectors) -> None:
        """The same into the first rows of memory that is there.

        A disk is told of all that is wanted of a few shards before the first of it is waited for.
        """
        for shards in _portions(self._by_shard(samples)):
            with ExitStack() as files:
                wanted = [
                    each
                    for number, part, rows in shards
                    for kind, vectors in enumerate(into)
                    for each in self._wanted_rows(files, number, kind, rows, vectors[part])
                ]
                for each in wanted:
                    each.read()

    def norms(self, samples: Ints) -> Norms:
        """The lengths that the embeddings of `samples`, ascending, had: image and text, [n, 2].

        Raises:
            UserError: the DATASET does not know them.
        """
        parts = [self._norms(number)[rows] for number, _, rows in self._by_shard(samples)]
        return np.concatenate([np.empty((0, 2), np.float32), *parts])

    def dim(self) -> int:
        """The embeddings' width."""
        return self._headers(0).dim

    def _by_shard(self, samples: Ints) -> Iterator[_Of]:
        """Numbers of shards, which of `samples` are theirs, and those rows, ascending.

        Raises:
            ValueError: `samples` do not ascend, or one comes twice.
        """
        if (samples[1:] <= samples[:-1]).any():
            raise ValueError("samples: expected ascending numbers, each once")
        first = 0
        while first < len(samples):
            number = bisect_right(self.starts, samples[first]) - 1
            last = bisect_left(samples, self.starts[number + 1], first)
            rows = samples[first:last] - self.starts[number]
            picked = self.refs[number].picked
            yield number, slice(first, last), rows if picked is None else picked[rows]
            first = last

    def _wanted_jpegs(self, files: ExitStack, number: int, rows: Ints) -> Iterator[_Jpegs]:
        """Pictures of one tar, in long reads, each of which the disk is told of."""
        ref, index = self.refs[number], self._indices(number)
        offsets, lengths = index.jpg_offset[rows], index.jpg_length[rows]
        tar = _open(files, schema.tar_path(ref.root, ref.shard))
        for first, last in _spans(offsets, offsets + lengths):
            begin, end = int(offsets[first]), int(offsets[last - 1] + lengths[last - 1])
            tar.expect(begin, end - begin)
            starts, sizes = offsets[first:last] - begin, lengths[first:last]
            yield _Jpegs(tar, begin, end - begin, starts.tolist(), sizes.tolist())

    def _wanted_rows(
        self, files: ExitStack, number: int, kind: int, rows: Ints, into: Halves
    ) -> Iterator[_Rows]:
        """Rows of one file, in long reads, each of which the disk is told of."""
        header = self._headers(2 * number + kind)
        size = 2 * header.dim
        file = _open(files, header.path)
        for first, last in _spans(size * rows, size * (rows + 1)):
            begin, inside = header.offset + size * int(rows[first]), rows[first:last] - rows[first]
            file.expect(begin, size * (int(inside[-1]) + 1))
            yield _Rows(file, begin, inside, into[first:last])

    def _embedding_path(self, number: int, kind: int) -> Place:
        ref = self.refs[number]
        path_of = (schema.img_emb_path, schema.text_emb_path)[kind]
        return path_of(ref.root, ref.shard, self._embeddings)

    def _read_index(self, number: int) -> Index:
        table = self._read_metadata(number, _INDEX)
        return Index(table[0].to_numpy(), table[1].to_numpy(), table[2])

    def _read_norms(self, number: int) -> Norms:
        ref = self.refs[number]
        path = schema.metadata_path(ref.root, ref.shard)
        if self._embeddings is not None:
            raise UserError(
                f"data.embeddings: got {self._embeddings!r}, but objective.embedding_length raw "
                f"needs lengths, which {ref.root} keeps of its own embeddings alone"
            )
        table = self._read_metadata(number, _NORMS)
        norms = np.stack([table[0].to_numpy(), table[1].to_numpy()], axis=1).astype(np.float32)
        if not np.isfinite(norms).all() or (abs(norms - 1) < _UNIT).all(axis=0).any():
            raise UserError(
                f"{path}: img_norm, text_norm: missing or 1 throughout, but "
                "objective.embedding_length raw needs the lengths of CLIP's projections"
            )
        return norms

    def _read_metadata(self, number: int, columns: list[str]) -> pa.Table:
        ref = self.refs[number]
        path = schema.metadata_path(ref.root, ref.shard)
        try:
            with path.open("rb") as file:
                table = pq.read_table(file, columns=columns)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise UserError(f"{path}: cannot be read ({one_line(error)})") from error
        if len(table) != ref.rows:
            raise UserError(f"{path}: got {len(table)} rows, expected {ref.rows}; verify the data")
        if table.column_names != columns:
            raise UserError(f"{path}: has {table.column_names}, expected {columns}")
        return table

    def _read_header(self, number: int) -> Header:
        ref, path = self.refs[number // 2], self._embedding_path(number // 2, number % 2)
        try:
            if not path.is_file():
                raise UserError(f"{path}: missing; make it with `unclip data embed`")
            with parts_of(path, 0) as part:
                header = npy_header(part(0, _HEADER))
        except OSError as error:
            raise _unreadable(path, error) from error
        except (ValueError, EOFError) as error:
            raise UserError(f"{path}: no npy file ({one_line(error)}); verify the data") from error
        dtype, fortran, shape, offset = header
        if dtype != "<f2" or fortran or len(shape) != 2 or shape[0] != ref.rows:
            raise UserError(
                f"{path}: got {dtype} {list(shape)}, expected <f2 (float16) [{ref.rows}, D]; "
                "verify the data"
            )
        return Header(path, offset, shape[1])


def whole_dataset(root: Place, embeddings: str | None = None) -> Shards:
    """All samples of one DATASET, in the order in which they are stored.

    Raises:
        UserError: it is none, or not complete; NothingUsable: it has no sample.
    """
    return Shards(find_shards([root], [schema.read_dataset(root)], None), embeddings)


def find_shards(
    roots: Sequence[Place], infos: Sequence[schema.DatasetInfo], selection: str | None
) -> list[ShardRef]:
    """The shards of DATASETs, one after another, that have a sample.

    Raises:
        UserError: a DATASET has no such selection.
        NothingUsable: there is no sample.
    """
    refs = []
    for root, info in zip(roots, infos, strict=True):
        sizes = schema.shard_sizes(root, info)
        if selection is None:
            refs += [ShardRef(root, shard, size) for shard, size in enumerate(sizes) if size]
        else:
            refs += _selected(root, sizes, selection)
    if not refs:
        what = "" if selection is None else f" that selection {selection!r} keeps"
        raise NothingUsable(f"{', '.join(map(str, roots))}: no sample in it{what}")
    return refs


def _selected(root: Place, sizes: Sequence[int], selection: str) -> Iterator[ShardRef]:
    shards, rows = np.divmod(selected_keys(root, selection), schema.KEYS_PER_SHARD)
    edges = np.searchsorted(shards, np.arange(len(sizes) + 1))
    for shard, size in enumerate(sizes):
        picked = rows[edges[shard] : edges[shard + 1]]
        if len(picked):
            yield ShardRef(root, shard, size, None if len(picked) == size else picked)


class _Open(NamedTuple):
    """A file of a shard, open; its errors name it."""

    path: Place
    part: Part

    def read(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer.

        Raises:
            UserError: the file ends early, or cannot be read.
        """
        try:
            read = self.part.into(offset, buffer)
        except OSError as error:
            raise _unreadable(self.path, error) from error
        except EOFError:  # a store's word for an object that has become shorter
            read = 0
        if read < len(buffer):
            raise UserError(f"{self.path}: ends early; verify the data")

    def expect(self, offset: int, size: int) -> None:
        """Say that these bytes will be read soon; nothing is lost where that fails."""
        with suppress(OSError):
            self.part.expect(offset, size)


def _open(files: ExitStack, path: Place) -> _Open:
    """Open until `files` is left.

    Raises:
        UserError: the file is missing, or may not be read.
    """
    try:
        return _Open(path, files.enter_context(parts_of(path, 0)))
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Place, error: OSError) -> UserError:
    return UserError(f"{path}: {error.strerror or one_line(error)}")


class _Jpegs(NamedTuple):
    """Files of pictures that are read at once."""

    tar: _Open
    begin: int  # in the tar
    size: int  # bytes
    starts: list[int]  # of each file, from `begin` on
    sizes: list[int]

    def read(self) -> list[bytes]:
        """The files."""
        data = np.empty(self.size, np.uint8).data
        self.tar.read(self.begin, data)
        places = zip(self.starts, self.sizes, strict=True)
        return [bytes(data[start : start + size]) for start, size in places]


class _Rows(NamedTuple):
    """Rows of embeddings that are read at once."""

    file: _Open
    begin: int  # where in the file the first of them is
    rows: Ints  # [n], ascending from 0
    into: Halves  # [n, D]

    def read(self) -> None:
        """Those that lie side by side come where they belong without a copy."""
        count = int(self.rows[-1]) + 1
        if count == len(self.rows):
            self.file.read(self.begin, self.into.data.cast("B"))
            return
        around = np.empty((count, self.into.shape[1]), np.float16)
        self.file.read(self.begin, around.data.cast("B"))
        self.into[:] = around[self.rows]


def _portions(shards: Iterator[_Of]) -> Iterator[list[_Of]]:
    """A few shards at a time: all their files are open at once, and a process may have so many."""
    while some := list(islice(shards, _OPEN)):
        yield some


def _spans(begins: Ints, ends: Ints) -> Iterator[tuple[int, int]]:
    """Neighbours that are read together, as [first, last) indices; `begins` and `ends` ascend."""
    edges = np.flatnonzero(begins[1:] - ends[:-1] > _GAP) + 1
    for first, last in pairwise([0, *edges.tolist(), len(begins)]):
        while first < last:
            until = max(bisect_right(ends, begins[first] + _SPAN, first, last), first + 1)
            yield first, until
            first = until
