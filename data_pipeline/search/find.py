"""A search in a DATASET: query, nearest rows, and what the metadata says of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from base.errors import UserError
from data_pipeline.schema.dataset import metadata_path, tar_path
from data_pipeline.search.embeddings import EmbeddingSet, open_embeddings
from data_pipeline.search.layout import (
    KINDS,
    RECORD,
    IndexRecord,
    damage,
    index_folder,
    read_record,
)
from data_pipeline.search.nearest import Found, nearest_by_index, nearest_exactly
from data_pipeline.search.query import embed_query, read_picture

MAX_COUNT = 1000
_ONE = 'one of a text ("a red circle") and --image FILE'
_COLUMNS = ["key", "source_key", "url", "caption", "width", "height", "jpg_offset", "jpg_length"]


@dataclass(frozen=True)
class Hit:
    """One picture that was found; `score` is the cosine of its embedding and the query's."""

    key: str
    score: float
    caption: str
    url: str | None
    source_key: str
    width: int
    height: int
    tar: Path
    offset: int
    length: int

    def to_json(self) -> dict[str, Any]:
        """What is told of a hit, without where its bytes lie."""
        return {
            "key": self.key,
            "score": round(self.score, 6),
            "caption": self.caption,
            "url": self.url,
            "source_key": self.source_key,
            "width": self.width,
            "height": self.height,
        }


@dataclass(frozen=True)
class Results:
    """What was found, the best first, and how."""

    dataset: str
    query: str
    how: str  # "index" or "exact"
    why: str  # why no index was used; "" where one was
    rows: int
    hits: tuple[Hit, ...]
    picture: npt.NDArray[np.uint8] | None  # that was searched with


def find(
    dataset: Path,
    text: str | None,
    clip: str,
    *,
    image: Path | None = None,
    count: int = 20,
    name: str | None = None,
    exact: bool = False,
) -> Results:
    """The `count` pictures nearest to a text or a picture.

    Raises:
        UserError: neither or both are given, no DATASET, no embeddings, another CLIP.
    """
    if (image is None) == (text is None):
        raise UserError(
            "query: got " + ("none" if image is None else "both") + ", expected " + _ONE
        )
    if text is not None and not (text.strip() and _is_unicode(text)):
        raise UserError(f"query: got {text!r}, expected " + _ONE)
    if not 1 <= count <= MAX_COUNT:
        raise UserError(f"count: got {count}, expected 1 to {MAX_COUNT}")
    embeddings = open_embeddings(dataset, name)
    picture = None if image is None else read_picture(image)
    folder = index_folder(dataset, name)
    record = None if exact else read_record(folder)
    why = "asked for" if exact else _why_not(folder, record, embeddings)
    query = embed_query(embeddings, clip, text, picture)
    if record is not None and not why:
        found = nearest_by_index(folder / "image.index", record, embeddings, query, count)
    else:
        found = nearest_exactly(embeddings, query, count)
    return Results(
        dataset=str(dataset),
        query=f"the picture {image.name}" if image is not None else str(text),
        how="exact" if why else "index",
        why=why,
        rows=embeddings.rows,
        hits=_hits(embeddings, found),
        picture=picture,
    )


def _is_unicode(text: str) -> bool:
    """Whether the text came as UTF-8; of other bytes Python makes halves of surrogate pairs."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _why_not(folder: Path, record: IndexRecord | None, embeddings: EmbeddingSet) -> str:
    """Why an index cannot be used; "" when it can."""
    if record is None:
        if any((folder / f"{kind}.index").exists() for kind in KINDS):
            return f"the index is damaged: {RECORD} is missing (`unclip data index` makes it anew)"
        return "there is no index (`unclip data index` makes one)"
    for name, noted in record.files.items():
        wrong = damage(folder, name, noted)
        if wrong:
            return f"the index cannot be used: {name} {wrong} (`unclip data index` makes it anew)"
    made_of = (record.plan_fingerprint, record.rows, record.clip)
    here = (embeddings.info.plan_fingerprint, embeddings.rows, embeddings.clip)
    if made_of != here or record.embeddings_fingerprint != embeddings.fingerprint():
        return "the index is of other embeddings (`unclip data index` makes it anew)"
    return ""


def _hits(embeddings: EmbeddingSet, found: Found) -> tuple[Hit, ...]:
    places = [embeddings.place(row) for row, _ in found]
    values = {}
    for shard in sorted({shard for shard, _ in places}):
        rows = [row for where, row in places if where == shard]
        for row, value in zip(rows, _metadata(embeddings, shard, rows), strict=True):
            values[shard, row] = value
    hits = []
    for place, (_, score) in zip(places, found, strict=True):
        value = values[place]
        offset, length = value.pop("jpg_offset"), value.pop("jpg_length")
        tar = tar_path(embeddings.root, place[0])
        hits.append(Hit(**value, score=score, tar=tar, offset=offset, length=length))
    return tuple(hits)


def _metadata(embeddings: EmbeddingSet, shard: int, rows: list[int]) -> list[dict[str, Any]]:
    """What the shard's metadata says of some of its rows."""
    path = metadata_path(embeddings.root, shard)
    try:
        taken: list[dict[str, Any]] = pq.read_table(path, columns=_COLUMNS).take(rows).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{path}: cannot be read ({' '.join(str(error).split())[:200]}); "
            f"`unclip data verify {embeddings.root}` tells more"
        ) from error
    return taken
