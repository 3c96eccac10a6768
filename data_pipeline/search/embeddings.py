"""One set of a DATASET's embeddings, seen as rows numbered from 0 on in the order of the tars."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import numpy.typing as npt

from base.config import fingerprint
from base.errors import UserError
from base.files import read_json
from data_pipeline.commits import is_done
from data_pipeline.schema.dataset import (
    EMBEDDED,
    ClipInfo,
    Commit,
    DatasetInfo,
    clip_from_json,
    clip_path,
    embedding_root,
    img_emb_path,
    read_commit,
    read_dataset,
    shard_sizes,
    text_emb_path,
)

_BLOCK = 1 << 16  # rows in memory at once


@dataclass(frozen=True)
class EmbeddingSet:
    """The first set of a DATASET (`name` None), or the one in embeddings/NAME."""

    root: Path
    name: str | None
    info: DatasetInfo
    clip: ClipInfo
    starts: tuple[int, ...]  # of each shard, and the number of all rows at the end

    @property
    def rows(self) -> int:
        """How many samples the set has."""
        return self.starts[-1]

    @property
    def folder(self) -> Path:
        """Where img_emb and text_emb lie."""
        return embedding_root(self.root, self.name)

    def place(self, row: int) -> tuple[int, int]:
        """(shard, row in that shard) of a row."""
        shard = bisect_right(self.starts, row) - 1
        return shard, row - self.starts[shard]

    def blocks(self) -> Iterator[tuple[int, npt.NDArray[np.float16]]]:
        """(number of the first row, picture embeddings [n, D]) of all rows, some at a time."""
        for shard, first in enumerate(self.starts[:-1]):
            if self.starts[shard + 1] == first:
                continue
            rows = self._shard(shard)
            for start in range(0, len(rows), _BLOCK):
                yield first + start, rows[start : start + _BLOCK]

    def take(self, rows: Sequence[int]) -> npt.NDArray[np.float32]:
        """Picture embeddings of some rows, [n, D] in the order asked for."""
        taken = np.empty((len(rows), self.clip.dim), np.float32)
        by_shard = defaultdict[int, list[tuple[int, int]]](list)
        for i, row in enumerate(rows):
            shard, place = self.place(row)
            by_shard[shard].append((i, place))
        for shard, pairs in by_shard.items():
            positions, places = zip(*pairs, strict=True)
            taken[list(positions)] = self._shard(shard)[list(places)]
        return taken

    def require_whole(self) -> None:
        """Refuses a set of which something is missing.

        Raises:
            UserError: a shard is not embedded, or its files are not there.
        """
        for shard in range(self.info.shards):
            if not is_done(self.root, shard, EMBEDDED, self.name):
                raise self._unfinished(img_emb_path(self.root, shard, self.name))

    def fingerprint(self) -> str:
        """Changes with any byte of the embeddings, as the commits have them.

        Raises:
            UserError: a shard has no commit.
        """
        commits = []
        for shard in range(self.info.shards):
            commit = read_commit(self.root, shard, self.name)
            if commit is None:
                raise self._unfinished(img_emb_path(self.root, shard, self.name))
            commits.append(commit)
        return fingerprint_of(commits, self.name)

    def _shard(self, shard: int) -> npt.NDArray[np.float16]:
        path = img_emb_path(self.root, shard, self.name)
        expected = (self.starts[shard + 1] - self.starts[shard], self.clip.dim)
        rows = self._mapped(path)
        if rows.shape != expected or rows.dtype != np.float16:
            raise UserError(
                f"{path}: got {rows.dtype} {list(rows.shape)}, expected float16 {list(expected)}; "
                f"`unclip data verify {self.root}` tells more"
            )
        return rows

    def _mapped(self, path: Path) -> npt.NDArray[np.float16]:
        try:
            mapped: npt.NDArray[np.float16] = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError as error:
            raise self._unfinished(path) from error
        except ValueError as error:
            raise UserError(f"{path}: not an npy file ({error})") from error
        return mapped

    def _unfinished(self, path: Path) -> UserError:
        option = f" --as {self.name}" if self.name else ""
        command = f"unclip data embed {self.root} --clip CLIP{option}"
        return UserError(f"{path}: not there yet, or not whole; run `{command}` again")


def fingerprint_of(commits: Iterable[Commit], name: str | None) -> str:
    """Changes with any byte of a set's embeddings, as the commits of its shards have them."""
    digests = []
    for commit in commits:
        for path in (img_emb_path, text_emb_path):
            record = commit.files.get(str(path(Path(), commit.shard, name)))
            digests.append(record.sha256 if record else None)
    return fingerprint(digests)


def open_embeddings(root: Path, name: str | None = None) -> EmbeddingSet:
    """A set of embeddings of a finished DATASET.

    Raises:
        UserError: `root` is no finished DATASET, or has no such embeddings.
    """
    info = read_dataset(root)
    clip = info.clip if name is None else _further_clip(root, name)
    if clip is None:
        raise UserError(
            f"{root}: has no embeddings; run `unclip data embed {root} --clip CLIP` first"
        )
    starts = tuple(accumulate(shard_sizes(root, info), initial=0))
    return EmbeddingSet(root, name, info, clip, starts)


def _further_clip(root: Path, name: str) -> ClipInfo:
    folder = root / "embeddings"
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if name not in names:
        known = ", ".join(names) or "none"
        raise UserError(f"embeddings: got {name!r}, expected a further set of {root}: {known}")
    path = clip_path(root, name)
    try:
        return clip_from_json(read_json(path))
    except TypeError as error:
        raise UserError(f"{path}: not a record of a CLIP ({error})") from error


def require_same_clip(embeddings: EmbeddingSet, clip: ClipInfo) -> None:
    """Refuses a CLIP whose rows cannot be compared with those of the set.

    The name of its file may differ: its bytes count.

    Raises:
        UserError: it is another one; the message tells in what.
    """
    known = embeddings.clip
    fields = ("model", "weights_sha256", "preprocess_sha256", "dim")
    differing = [name for name in fields if getattr(known, name) != getattr(clip, name)]
    if differing:
        raise UserError(
            f"clip: {embeddings.folder} has embeddings of {known.model} {known.pretrained}, "
            f"which differs from {clip.model} {clip.pretrained} in {', '.join(differing)}; give "
            "the CLIP that made them (--clip), or the name of another set (--embeddings)"
        )
