"""Whether the DATASETs have what the rules ask for: columns, embeddings, perceptual hashes."""

from __future__ import annotations

import pyarrow as pa

from base.errors import UserError
from base.files import read_json
from data_pipeline.commits import is_done
from data_pipeline.curate.config import CurateConfig
from data_pipeline.curate.groups import can_be_capped
from data_pipeline.curate.row_rules import RowRule, row_rules
from data_pipeline.curate.samples import Samples, is_number
from data_pipeline.curate.together import Together
from data_pipeline.schema.dataset import (
    EMBEDDED,
    EMBEDDING_COLUMNS,
    ClipInfo,
    clip_from_json,
    clip_path,
)


def require_possible(together: Together, config: CurateConfig) -> list[RowRule]:
    """The rules on single rows, when everything that the config asks for can be done.

    Raises:
        UserError: a column, a set of embeddings, a pattern or a language is not what is expected.
    """
    rules = row_rules(config, _schema(together, config))
    scored = [(f"thresholds.{column}", column) for column in config.thresholds]
    if config.prefer is not None:
        scored.append(("prefer", config.prefer))
        if not is_number(kind := together.column_type(config.prefer, "prefer")):
            raise UserError(
                f"prefer: got column {config.prefer!r} of type {kind}, expected one of numbers"
            )
    for place, column in scored:
        together.column_type(column, place)
        if column in EMBEDDING_COLUMNS:
            _require_embeddings(together, place, None)
    for column in config.caps:
        kind = together.column_type(column, f"caps.{column}")
        if not can_be_capped(kind):
            raise UserError(
                f"caps.{column}: got a column of type {kind}, expected text, numbers or dates"
            )
    if config.embedding_duplicates is not None:
        _require_embeddings(together, "embedding_duplicates", config.embedding_duplicates.set)
    _require_hashes(together, config)
    return rules


def _schema(together: Together, config: CurateConfig) -> pa.Schema:
    """The first DATASET's, columns with a threshold as wide as those of all."""
    schema = together.parts[0].schema
    for column in config.thresholds:
        kind = together.column_type(column, f"thresholds.{column}")
        if column in schema.names:
            schema = schema.set(schema.get_field_index(column), pa.field(column, kind))
    return schema


def _require_hashes(together: Together, config: CurateConfig) -> None:
    """Perceptual hashes are of pictures, which published embeddings come without."""
    bare = [part.root for part in together.parts if not part.info.has_pictures]
    if not bare:
        return
    why = f"{bare[0]} has no pictures, and so no perceptual hashes"
    if config.phash_duplicates is not None:
        raise UserError(
            f"phash_duplicates: {why}; embedding_duplicates finds like pictures by their embeddings"
        )
    if config.split is not None and config.split.distance:
        raise UserError(
            f"split.distance: got {config.split.distance}, but {why}; expected 0, which splits by "
            "equal embeddings (drop near ones first: embedding_duplicates)"
        )
    if config.split is not None and len(bare) < len(together.parts):
        raise UserError(f"split: {why}, while others have; split them one by one")


def _require_embeddings(together: Together, place: str, name: str | None) -> None:
    """That all have the set, and of one CLIP: others' cosines cannot be compared."""
    first, *others = [_clip_of(part, place, name) for part in together.parts]
    for clip, part in zip(others, together.parts[1:], strict=True):
        if clip != first:
            raise UserError(
                f"{place}: {part.root} has embeddings of {clip.model} {clip.pretrained}, expected "
                f"those of {first.model} {first.pretrained}, as {together.parts[0].root} has"
            )


def _clip_of(samples: Samples, place: str, name: str | None) -> ClipInfo:
    """Whose the embeddings of a finished set are."""
    if name is None:
        if samples.info.clip is None:
            raise UserError(f"{place}: {samples.root} has no embeddings; run `unclip data embed`")
        return samples.info.clip
    folder = samples.root / "embeddings"
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if name not in there:
        raise UserError(
            f"{place}.set: got {name!r}, expected one of {folder}: "
            f"{', '.join(there) or 'there is none'}"
        )
    if not all(is_done(samples.root, s, EMBEDDED, name) for s in range(samples.info.shards)):
        raise UserError(f"{place}.set: {name!r} is not finished; run `unclip data embed` again")
    return clip_from_json(read_json(clip_path(samples.root, name)))
