"""Checks of one shard's files against each other, for `verify`."""

from __future__ import annotations

import io
import itertools
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from base.npy import npy_header
from data_pipeline.check_sample import sample_problem
from data_pipeline.commits import is_current
from data_pipeline.embed import CLIP_NOTE
from data_pipeline.features import cosine
from data_pipeline.problems import Problems
from data_pipeline.schema.dataset import (
    EMBEDDING_COLUMNS,
    MAX_EMBEDDING_NORM_ERROR,
    METADATA_SCHEMA,
    PIXELS,
    REASONS,
    REJECTED_SCHEMA,
    ClipInfo,
    Commit,
    DatasetInfo,
    clip_from_json,
    clip_path,
    img_emb_path,
    metadata_path,
    rejected_path,
    sample_key,
    tar_path,
    text_emb_path,
)
from data_pipeline.shard_files import ShardFiles
from data_pipeline.shards import read_note, ustar_header

_END = b"\0" * 1024
_SIMILARITY_ERROR = 1e-6


def check_current(path: Path, further: Commit, own: Commit, problems: Problems) -> None:
    """That a further set's rows, committed at `path`, are of the shard's present tar."""
    if is_current(further, own):
        return
    told = "were made of another tar" if further.tar_sha256 else "do not say of which tar they are"
    problems.add(path, f"its rows {told}; run `unclip data embed` again")


def check_rejected(files: ShardFiles, commit: Commit, problems: Problems) -> list[int]:
    """The rejected rows' positions in the input."""
    path = rejected_path(Path(), commit.shard)
    table = files.table(path)
    if not table.schema.equals(REJECTED_SCHEMA):
        problems.add(path, "has other columns than the contract")
    problems.expect(path, "rows", table.num_rows, commit.rejected)
    for reason in set(table["reason"].to_pylist()) - set(REASONS):
        problems.add(path, f"reason {reason!r} is not documented")
    rows: list[int] = table["row"].to_pylist()
    return rows


def check_metadata(
    table: pa.Table, commit: Commit, info: DatasetInfo, problems: Problems
) -> list[int]:
    """The kept rows' positions in the input."""
    path = metadata_path(Path(), commit.shard)
    head = pa.schema(list(table.schema)[: len(METADATA_SCHEMA)])
    if not head.equals(METADATA_SCHEMA):
        problems.add(path, "has other columns than the contract")
    problems.expect(path, "rows", table.num_rows, commit.kept)
    keys = [sample_key(commit.shard, row) for row in range(commit.kept)]
    if table["key"].to_pylist() != keys:
        problems.add(path, "keys are not dense and in order")
    rows: list[int] = table["row"].to_pylist()
    if any(after <= before for before, after in itertools.pairwise(rows)):
        problems.add(path, "rows are not in input order")
    least = 1 if info.has_pictures else 0  # published embeddings need not tell
    for name in ("original_width", "original_height"):
        if any(side < least for side in table[name].to_pylist()):
            problems.add(path, f"{name} has values below {least}")
    if commit.stage == PIXELS:
        if any(table[name].null_count != table.num_rows for name in EMBEDDING_COLUMNS):
            problems.add(path, "has similarities without a CLIP")
    elif info.clip and read_note(table.schema, CLIP_NOTE) != asdict(info.clip):
        problems.add(path, "its CLIP is not the one of dataset.json")
    return rows


def check_tar(files: ShardFiles, commit: Commit, table: pa.Table, problems: Problems) -> None:
    """Headers as we write them, members in order, where metadata says, with what it says."""
    path = tar_path(Path(), commit.shard)
    extra = list(table.schema)[len(METADATA_SCHEMA) :]
    with files.stream(path) as tar:
        place = 0
        for row in table.to_pylist():
            members = {}
            for suffix in ("jpg", "txt", "json"):
                offset, length = row[f"{suffix}_offset"], row[f"{suffix}_length"]
                name = f"{row['key']}.{suffix}"
                header = ustar_header(name, length)
                if offset != place + len(header) or tar.read(len(header)) != header:
                    problems.add(path, f"{name}: its header or offset is not as promised")
                    return
                members[suffix] = tar.read(length)
                if any(tar.read(-length % 512)):
                    problems.add(path, f"{name}: bytes after its end")
                place = offset + length + -length % 512
            problem = sample_problem(members, row, extra)
            if problem:
                problems.add(path, f"{row['key']}: {problem}")
        if tar.read(len(_END) + 1) != _END:
            problems.add(path, "does not end with two zero blocks after the last sample")


def check_no_tar(files: ShardFiles, commit: Commit, table: pa.Table, problems: Problems) -> None:
    """Of published embeddings: metadata claims no picture, and captions are what they seem."""
    path = metadata_path(Path(), commit.shard)
    places = [name for name in METADATA_SCHEMA.names if name.endswith(("_offset", "_length"))]
    for name in ("width", "height", *places):
        if any(table[name].to_pylist()):
            problems.add(path, f"{name} is told of pictures that are not there")
    if any(table["phash"].to_pylist()):
        problems.add(path, "phash is told of pictures that are not there")
    for caption, captions in zip(
        table["caption"].to_pylist(), table["captions"].to_pylist(), strict=True
    ):
        if captions[:1] != [caption]:
            problems.add(path, "the caption is not the first of the captions")


def check_embeddings(
    files: ShardFiles,
    commit: Commit,
    table: pa.Table,
    info: DatasetInfo,
    name: str | None,
    problems: Problems,
) -> None:
    """Format, counts, norms; for the first set also what metadata says of them."""
    shard = commit.shard
    clip = info.clip if name is None else _further_clip(files, name)
    if clip is None:
        return
    rows = {}
    kinds = [("image", img_emb_path), ("text", text_emb_path)]
    columns = ["img_norm", "text_norm"]
    if clip.published and str(text_emb_path(Path(), shard)) not in commit.files:
        _check_no_texts(table, commit, problems)
        kinds, columns = kinds[:1], columns[:1]
    for kind, make in kinds:
        path = make(Path(), shard, name)
        rows[kind] = _load_rows(files.opened(path), path, (commit.kept, clip.dim), problems)
    if name is not None or any(found is None for found in rows.values()):
        return
    path = metadata_path(Path(), shard)
    image, text = rows["image"], rows.get("text")
    if image is not None and text is not None:
        stored = table["similarity"].to_numpy()
        if not np.allclose(stored, cosine(image, text), 0, _SIMILARITY_ERROR):
            problems.add(path, "similarity is not the cosine of the stored rows")
    for column in columns:
        values = table[column].to_numpy()
        if not (np.isfinite(values).all() and (values > 0).all()):
            problems.add(path, f"{column} has values that are no norms")


def _check_no_texts(table: pa.Table, commit: Commit, problems: Problems) -> None:
    for name in ("similarity", "text_norm"):
        if table[name].null_count != table.num_rows:
            path = metadata_path(Path(), commit.shard)
            problems.add(path, f"{name} is told of embeddings that are not there")


def _further_clip(files: ShardFiles, name: str) -> ClipInfo:
    return clip_from_json(json.loads(files.read(clip_path(Path(), name))))


def _load_rows(
    file: io.BytesIO, path: Path, shape: tuple[int, int], problems: Problems
) -> npt.NDArray[np.float16] | None:
    data = file.getvalue()
    header = npy_header(data)
    if (header.dtype, header.fortran, header.shape) != ("<f2", False, shape):
        problems.add(path, f"got npy {header.dtype} {header.shape}, expected <f2 (float16) {shape}")
        return None
    count = shape[0] * shape[1]
    rows = np.frombuffer(data, np.float16, count, header.offset).reshape(shape)
    norms = np.linalg.norm(rows.astype(np.float64), axis=1)
    worst = float(np.abs(norms - 1).max(initial=0.0))
    if not worst <= MAX_EMBEDDING_NORM_ERROR:
        problems.add(path, f"a row's norm is off by {worst:.2g}")
        return None
    return rows
