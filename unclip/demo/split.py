"""A user's own pairs in two tables: what is trained on, and what is held out for the report."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from base.errors import NothingUsable
from base.files import read_json, write_json
from base.hashing import stable_hash
from base.progress import Progress
from data_pipeline import sources
from data_pipeline.config import PrepareConfig
from data_pipeline.fetch.rows import Backlog, in_order, with_pictures
from data_pipeline.row import Row

_SCHEMA = pa.schema(
    [("key", pa.string()), ("image", pa.binary()), ("captions", pa.list_(pa.string()))]
)
_ROWS = 200  # of a row group: what is in memory at once
_HELD_OUT = 256  # pictures to hold out, when there are enough
_LARGEST_SHARE, _SMALLEST_SHARE = 8, 16  # one in so many pictures


def split_pairs(data: Path, out: Path) -> tuple[Path, Path]:
    """Write `out`/train.parquet and heldout.parquet; pictures go by their first caption.

    So all pictures of one caption are on one side. Rows without a picture or a caption cannot be
    used; `out`/split.json counts them by reason. A split that is there is left alone. Raises what
    `unclip data prepare` raises for bad inputs.
    """
    paths = (out / "train.parquet", out / "heldout.parquet")
    if (out / "split.json").is_file():
        return paths
    work = out / ".work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    found = sources.scan([data], work)
    total = sum(source.rows for source in found)
    one_in = min(max(total // _HELD_OUT, _LARGEST_SHARE), _SMALLEST_SHARE)
    counts, left_out = [0, 0], Counter[str]()
    with Progress("split", total, "pictures") as bar:
        for note in (note for source in found for note in source.notes):
            bar.log(note)
        writers = [pq.ParquetWriter(path, _SCHEMA) for path in paths]
        pending: list[list[dict[str, object]]] = [[], []]
        for row in _rows(found):
            bar.advance(1)
            if reason := _why_unusable(row):
                left_out[reason] += 1
                continue
            side = int(stable_hash(row.captions[0].casefold()) % one_in == 0)
            pending[side].append(
                {"key": row.source_key, "image": row.image, "captions": list(row.captions)}
            )
            counts[side] += 1
            if len(pending[side]) == _ROWS:
                writers[side].write_table(pa.Table.from_pylist(pending[side], _SCHEMA))
                pending[side] = []
        for writer, rest in zip(writers, pending, strict=True):
            writer.write_table(pa.Table.from_pylist(rest, _SCHEMA))
            writer.close()
        if left_out:
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
            bar.log(f"{data}: {left_out.total()} of {total} rows left out: {reasons}")
    shutil.rmtree(work)
    if not all(counts):
        raise NothingUsable(f"{data}: {sum(counts)} usable pairs, too few to hold some out")
    record = {"train": counts[0], "heldout": counts[1], "left_out": dict(sorted(left_out.items()))}
    write_json(out / "split.json", record)
    return paths


def split_counts(out: Path) -> tuple[int, int]:
    """Pictures to train on and held out, of a split that is there."""
    counts = read_json(out / "split.json")
    return counts["train"], counts["heldout"]


def _rows(found: list[sources.Source]) -> Iterator[Row]:
    """All rows, in the inputs' order; what is behind addresses is fetched."""
    config = PrepareConfig()
    rows = (row for s in found for row in sources.read(s, 0, s.rows, config.max_bytes))
    backlog = Backlog()
    coming = with_pictures(enumerate(rows), config.fetch, config.max_bytes, backlog)
    return in_order(coming, 0, backlog, lambda row: len(row.image or b""))


def _why_unusable(row: Row) -> str | None:
    """A word of schema.dataset.REASONS."""
    if row.problem is not None:
        return row.problem.reason
    return None if row.captions else "no_caption"
