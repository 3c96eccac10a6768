"""One shard from its input rows: pictures fitted and encoded, tar, metadata, rejections."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import simplejpeg

from data_pipeline import columns, resize, sources
from data_pipeline.captions import with_caption
from data_pipeline.clip_pool import ClipPool
from data_pipeline.config import PrepareConfig
from data_pipeline.crop import Pixels
from data_pipeline.decode import Limits, decode
from data_pipeline.embed import with_columns, write_rows
from data_pipeline.features import ShardFeatures
from data_pipeline.fetch.rows import Backlog, in_order, with_pictures
from data_pipeline.jpeg import is_plain
from data_pipeline.phash import phash
from data_pipeline.plan import ShardPlan
from data_pipeline.row import Rejection, Row, rejected_row, utf8
from data_pipeline.schema.dataset import (
    EMBEDDED,
    EMBEDDING_COLUMNS,
    METADATA_SCHEMA,
    PIXELS,
    REJECTED_SCHEMA,
    VERSION,
    Commit,
    metadata_path,
    metadata_schema,
    rejected_path,
    sample_key,
    tar_path,
)
from data_pipeline.shards import TarWriter, write_parquet
from data_pipeline.sources import Source

_LONGEST_SIDE = 65_500  # that libjpeg writes

cv2.setNumThreads(0)  # one shard, one core


@dataclass(frozen=True)
class Job:
    """Everything that a worker needs to make one shard."""

    plan: ShardPlan
    sources: tuple[Source, ...]
    extra: pa.Schema  # other columns of all sources together
    config: PrepareConfig
    pool: ClipPool | None = None  # embeddings are made along with the pictures


@dataclass
class _Rows:
    """What the shard's tables will hold."""

    names: columns.Names
    kept: list[dict[str, Any]] = field(default_factory=list)
    extras: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class _Made:
    """A row with its stored JPEG and what metadata says of it, or why there is none."""

    position: int
    row: Row
    jpeg: bytes
    meta: dict[str, Any]
    crop: Pixels | None  # of the stored picture, as the CLIP takes it
    problem: Rejection | None

    @property
    def bytes(self) -> int:
        """What it holds in memory while it waits for earlier rows."""
        return len(self.jpeg) + (0 if self.crop is None else self.crop.nbytes)


def make_shard(job: Job, attempt: Path) -> Commit:
    """Writes the shard's files into the folder `attempt`, by their last names.

    Equal inputs, config and versions give equal bytes.
    """
    rows = _Rows(columns.Names.of(metadata_schema(job.extra), job.extra))
    shard = job.plan.shard
    root = Path()
    features = ShardFeatures(job.pool, shard, f"shard {shard}") if job.pool else None
    tar = TarWriter(attempt / tar_path(root, shard).name)
    with tar:
        backlog = Backlog()
        made_rows = _made(job, backlog)
        for made in in_order(made_rows, job.plan.first_row, backlog, lambda made: made.bytes):
            if made.problem is None:
                _add(job, tar, rows, made)
                if features is not None and made.crop is not None:
                    features.add(made.crop, made.row.captions[0])
            else:
                rows.rejected.append(rejected_row(made.position, made.row, made.problem))
    files, devices = {}, tuple[str, ...]()
    if rows.kept:
        files[str(tar_path(root, shard))] = tar.file.record(len(rows.kept))
        table = _metadata(rows, job.extra)
        if features is not None and job.pool is not None:
            embedded = features.finish()
            files |= write_rows(attempt, shard, embedded)
            devices = embedded.devices
            table = with_columns(table, embedded, job.pool.info)
        path = metadata_path(root, shard)
        files[str(path)] = write_parquet(attempt / path.name, table)
    else:
        (attempt / tar_path(root, shard).name).unlink()
    path = rejected_path(root, shard)
    rejected = pa.Table.from_pylist(rows.rejected, schema=REJECTED_SCHEMA)
    files[str(path)] = write_parquet(attempt / path.name, rejected)
    return Commit(
        version=VERSION,
        stage=PIXELS if job.pool is None else EMBEDDED,
        shard=shard,
        input=job.plan.count,
        kept=len(rows.kept),
        rejected=len(rows.rejected),
        files=files,
        devices=devices,
    )


def _input_rows(job: Job) -> Iterator[tuple[int, Row]]:
    position = job.plan.first_row
    for part in job.plan.slices:
        source = job.sources[part.source]
        for row in sources.read(source, part.first, part.count, job.config.max_bytes):
            yield position, row
            position += 1


def _made(job: Job, backlog: Backlog) -> Iterator[tuple[int, _Made]]:
    """Every row's picture as it will be stored, by position; those from the web as they arrive."""
    config = job.config
    checked = ((position, with_caption(row, config)) for position, row in _input_rows(job))
    for position, row in with_pictures(checked, config.fetch, config.max_bytes, backlog):
        try:
            if row.problem is not None:
                raise row.problem
            assert row.image is not None, "with_pictures leaves no row without"
            jpeg, meta, stored = encode(row.image, config)
            crop = None if job.pool is None else job.pool.crop(stored)
            yield position, _Made(position, row, jpeg, meta, crop, None)
        except Rejection as why:
            yield position, _Made(position, row, b"", {}, None, why)


def _add(job: Job, tar: TarWriter, rows: _Rows, made: _Made) -> None:
    """Appends a row to tar and tables."""
    row, jpeg = made.row, made.jpeg
    key = sample_key(job.plan.shard, len(rows.kept))
    head: dict[str, Any] = {
        "key": key,
        "caption": row.captions[0],
        "captions": list(row.captions),
        "row": made.position,
        "source_key": utf8(row.source_key),
        "url": _url(row),
        **made.meta,
    }
    rest = columns.renamed(row.extra, rows.names)
    text = row.captions[0].encode()
    body = columns.json_text({**head, **rest}).encode("utf-8", "replace")
    for suffix, data in (("jpg", jpeg), ("txt", text), ("json", body)):
        head[f"{suffix}_offset"] = tar.add(f"{key}.{suffix}", data)
        head[f"{suffix}_length"] = len(data)
    rows.kept.append(head)
    rows.extras.append(dict(row.extra))


def encode(data: bytes, config: PrepareConfig) -> tuple[bytes, dict[str, Any], Pixels]:
    """The stored JPEG, what metadata says of picture and source, and the pixels [H, W, 4].

    Raises:
        Rejection: with the reason; nothing else, whatever the bytes are.
    """
    mode, size = config.mode, config.image_size
    limits = Limits(config.max_pixels, config.min_side, config.max_aspect)
    picture = decode(data, limits, lambda w, h: resize.needed_sides(mode, size, w, h))
    _check_sides(*resize.largest_sides(mode, size, *picture.pixels.shape[1::-1]), config)
    fitted = resize.fit(picture.pixels, mode, size, config.only_if_bigger)
    if config.keep_jpeg and fitted.shape[:2] == (picture.height, picture.width) and is_plain(data):
        jpeg = data
    else:
        jpeg = simplejpeg.encode_jpeg(
            np.ascontiguousarray(fitted), config.jpeg_quality, "RGB", config.chroma
        )
    width, height = picture.width, picture.height
    del picture, fitted  # a large one is not held twice
    stored = simplejpeg.decode_jpeg(jpeg, "RGBX")  # [H, W, 4]: as Pillow holds it, not copied
    meta = {
        "width": stored.shape[1],
        "height": stored.shape[0],
        "original_width": width,
        "original_height": height,
        "sha256": hashlib.sha256(data).hexdigest(),
        "phash": phash(stored),
    }
    return jpeg, meta, stored


def _check_sides(width: int, height: int, config: PrepareConfig) -> None:
    if max(width, height) > _LONGEST_SIDE:
        raise Rejection(
            "unsupported_image", f"{width}x{height} to store, a JPEG has {_LONGEST_SIDE} a side"
        )
    if width * height > config.max_pixels:
        raise Rejection(
            "too_many_pixels", f"{width}x{height} to store, the cap is {config.max_pixels}"
        )


def _metadata(rows: _Rows, extra: pa.Schema) -> pa.Table:
    schema = metadata_schema(extra)
    known = {name: [row.get(name) for row in rows.kept] for name in METADATA_SCHEMA.names}
    arrays = [pa.array(known[field.name], field.type) for field in METADATA_SCHEMA]
    for other in extra:
        arrays.append(columns.as_array([row.get(other.name) for row in rows.extras], other.type))
    assert all(known[name] == [None] * len(rows.kept) for name in EMBEDDING_COLUMNS)
    return pa.Table.from_arrays(arrays, schema=schema)


def _url(row: Row) -> str | None:
    return None if row.url is None else utf8(row.url)
