"""Shards of published embeddings: rows of norm 1 with their metadata, and no pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from base.errors import UserError
from base.places import Place
from data_pipeline import columns
from data_pipeline.captions import with_caption
from data_pipeline.clip_spec import ClipSpec
from data_pipeline.commits import read_commits
from data_pipeline.embed import CLIP_NOTE
from data_pipeline.features import cosine
from data_pipeline.parquet import read_schema
from data_pipeline.row import Rejection, Row, rejected_row, utf8
from data_pipeline.schema.dataset import (
    EMBEDDED,
    METADATA_SCHEMA,
    REJECTED_SCHEMA,
    VERSION,
    ClipInfo,
    Commit,
    FileRecord,
    img_emb_path,
    metadata_path,
    metadata_schema,
    rejected_path,
    sample_key,
    text_emb_path,
)
from data_pipeline.shards import read_note, with_note, write_embeddings, write_parquet
from data_pipeline.sources import Source, embeddings

if TYPE_CHECKING:
    from data_pipeline.pixels import Job

# Raw projections of the CLIPs there are have norms of about 10, published rows mostly 1.
_LEAST_NORM, _LARGEST_NORM = 1e-2, 1e3
_SIDES = ("original_width", "width"), ("original_height", "height")  # names in the source
_Norms = npt.NDArray[np.float32]  # [n]


def with_clip(out: Place, found: Sequence[Source], spec: ClipSpec | None) -> list[Source]:
    """The sources; those of embeddings with the CLIP that the user says they are of.

    Raises:
        UserError: embeddings come without such a word, or together with pictures; files differ in
            width or in whether captions have some; or `out` was begun with those of another CLIP.
    """
    published = spec if spec is not None and spec.kind == "published" else None
    without = [source.name for source in found if source.vectors is None]
    if len(without) == len(found):
        if published:
            raise UserError("clip: published:… is for embeddings; expected a CLIP to embed with")
        return list(found)
    if without:
        raise UserError(f"{without[0]}: no embeddings, while other inputs are; give one kind alone")
    if published is None:
        raise UserError(
            f"clip: {found[0].name} holds published embeddings; say of which CLIP, such as "
            "--clip published:ViT-L-14/openai"
        )
    pairs = [(source, source.vectors) for source in found if source.vectors is not None]
    first = pairs[0][1]
    for source, vectors in pairs:
        if vectors.dim != first.dim:
            raise UserError(f"{source.name}: got rows of {vectors.dim}, expected {first.dim}")
        if (vectors.texts is None) != (first.texts is None):
            raise UserError(f"{source.name}: captions' embeddings are there for some files alone")
    info = ClipInfo(published.model, published.label, "", "", first.dim)
    _require_same(out, info)
    return [replace(source, vectors=replace(vectors, clip=info)) for source, vectors in pairs]


def _require_same(out: Place, info: ClipInfo) -> None:
    commits = read_commits(out, range(_begun(out)))
    there = next((commit for commit in commits if commit and commit.kept), None)
    if there is None:
        return
    known = read_note(read_schema(metadata_path(out, there.shard)), CLIP_NOTE)
    if known != asdict(info):
        raise UserError(
            f"{out}: begun as embeddings of {known['model']} {known['pretrained']}, now "
            f"{info.model} {info.pretrained}; use the old name or another --out"
        )


def _begun(out: Place) -> int:
    folder = out / "commits"
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def used_clip(found: Sequence[Source]) -> ClipInfo | None:
    """Whose the sources' embeddings are; None when they are pictures."""
    return found[0].vectors.clip if found[0].vectors else None


def make_vector_shard(job: Job, attempt: Path) -> Commit:
    """Writes the shard's files into the folder `attempt`, by their last names.

    Rows are normalised in float32 before the cast to float16, as those that are computed are.
    """
    root, shard = Path(), job.plan.shard
    rows = list(_rows(job))
    image, text = _vectors(job)
    image_norm, text_norm = _norms(image), None if text is None else _norms(text)
    kept: list[int] = []
    rejected: list[dict[str, Any]] = []
    for place, row in enumerate(rows):
        problem = row.problem or _fault("picture", image_norm[place])
        if problem is None and text_norm is not None:
            problem = _fault("caption", text_norm[place])
        if problem is None:
            kept.append(place)
        else:
            rejected.append(rejected_row(job.plan.first_row + place, row, problem))
    files: dict[str, FileRecord] = {}
    if kept:
        table = _metadata(job, rows, kept)
        stored = _stored(image, image_norm, kept)
        _write(attempt, img_emb_path(root, shard), stored, files)
        table = _with(table, "img_norm", image_norm[kept])
        if text is not None and text_norm is not None:
            texts = _stored(text, text_norm, kept)
            _write(attempt, text_emb_path(root, shard), texts, files)
            table = _with(table, "text_norm", text_norm[kept])
            table = _with(table, "similarity", cosine(stored, texts))
        path = metadata_path(root, shard)
        clip = used_clip(job.sources)
        assert clip is not None, "no shard of embeddings is made without"
        noted = with_note(table, CLIP_NOTE, asdict(clip))
        files[str(path)] = write_parquet(attempt / path.name, noted)
    path = rejected_path(root, shard)
    refused = pa.Table.from_pylist(rejected, schema=REJECTED_SCHEMA)
    files[str(path)] = write_parquet(attempt / path.name, refused)
    return Commit(VERSION, EMBEDDED, shard, len(rows), len(kept), len(rejected), files)


def _rows(job: Job) -> Iterator[Row]:
    for part in job.plan.slices:
        source = job.sources[part.source]
        for row in embeddings.read(source, part.first, part.count, job.config.max_bytes):
            yield with_caption(row, job.config)


def _vectors(job: Job) -> tuple[embeddings.Rows, embeddings.Rows | None]:
    """The shard's rows as they were published, float32 [n, D]."""
    parts = [
        embeddings.read_vectors(job.sources[part.source], part.first, part.count)
        for part in job.plan.slices
    ]
    texts = [text for _, text in parts if text is not None]
    return np.concatenate([image for image, _ in parts]), np.concatenate(texts) if texts else None


def _norms(rows: embeddings.Rows) -> _Norms:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(np.linalg.norm(rows, axis=1), np.float32)


def _fault(whose: str, norm: np.float32) -> Rejection | None:
    if _LEAST_NORM <= norm <= _LARGEST_NORM:
        return None
    message = f"the {whose}'s embedding has norm {norm:g}, expected {_LEAST_NORM} to "
    return Rejection("bad_embedding", f"{message}{_LARGEST_NORM:g}")


def _stored(rows: embeddings.Rows, norms: _Norms, kept: Sequence[int]) -> npt.NDArray[np.float16]:
    chosen: npt.NDArray[np.float16] = (rows[kept] / norms[kept, None]).astype(np.float16)
    return chosen


def _write(
    attempt: Path, path: Path, rows: npt.NDArray[np.float16], files: dict[str, FileRecord]
) -> None:
    files[str(path)] = write_embeddings(attempt / path.name, rows)


def _with(table: pa.Table, name: str, values: npt.NDArray[np.float32]) -> pa.Table:
    field = METADATA_SCHEMA.field(name)
    return table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))


def _metadata(job: Job, rows: Sequence[Row], kept: Sequence[int]) -> pa.Table:
    heads = [_head(job, number, place, rows[place]) for number, place in enumerate(kept)]
    arrays = [pa.array([head.get(f.name) for head in heads], f.type) for f in METADATA_SCHEMA]
    for other in job.extra:
        found = [rows[place].extra.get(other.name) for place in kept]
        arrays.append(columns.as_array(found, other.type))
    return pa.Table.from_arrays(arrays, schema=metadata_schema(job.extra))


def _head(job: Job, number: int, place: int, row: Row) -> dict[str, Any]:
    """What is told of a row; 0 and no text where there would have to be a picture."""
    tar = [f"{suffix}_{what}" for suffix in ("jpg", "txt", "json") for what in ("offset", "length")]
    return {
        "key": sample_key(job.plan.shard, number),
        "row": job.plan.first_row + place,
        "source_key": utf8(row.source_key),
        "url": None if row.url is None else utf8(row.url),
        "caption": row.captions[0],
        "captions": list(row.captions),
        "width": 0,
        "height": 0,
        "original_width": _side(row, _SIDES[0]),
        "original_height": _side(row, _SIDES[1]),
        "sha256": row.expected.get("sha256", ""),
        "phash": "",
        **dict.fromkeys(tar, 0),
    }


def _side(row: Row, names: tuple[str, ...]) -> int:
    """The picture's side as the source tells it, or 0."""
    told = {name.lower(): value for name, value in row.extra.items()}
    for name in names:
        value = told.get(name)
        if isinstance(value, int | float) and 0 < value < 2**31:
            return int(value)
    return 0
