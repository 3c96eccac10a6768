"""CLIP embeddings of a DATASET's shards, made by a pool of actors from the stored pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import simplejpeg

from base.errors import UserError
from base.files import read_json, sha256_file, write_json
from base.lease import Lease
from base.places import Place, parts_of
from base.progress import Progress, share_of
from base.stop import StopFlag
from data_pipeline.attempts import attempt_at, work_folder
from data_pipeline.clip_pool import ClipPool, start_pool
from data_pipeline.clip_spec import ClipSpec, find_clip
from data_pipeline.cluster import cluster, cpus, run_bounded
from data_pipeline.commits import done, publish_all, read_commits, tar_sha256, write_commit
from data_pipeline.config import EmbedConfig, Precision
from data_pipeline.features import Embedded, ShardFeatures
from data_pipeline.parquet import read_schema, read_table
from data_pipeline.schema.dataset import (
    DATASET_FILE,
    EMBEDDED,
    METADATA_SCHEMA,
    ClipInfo,
    Commit,
    DatasetInfo,
    FileRecord,
    clip_from_json,
    clip_path,
    embedding_root,
    img_emb_path,
    metadata_path,
    read_commit,
    read_dataset,
    tar_path,
    text_emb_path,
)
from data_pipeline.shards import read_note, with_note, write_embeddings, write_parquet

CLIP_NOTE = "clip"  # metadata files say which CLIP their columns come from


def embed_shard(pool: ClipPool, root: Place, shard: int, name: str | None, attempt: Path) -> Commit:
    """Writes npy files, and for the first set the metadata with its three columns filled in.

    They lie in the folder `attempt` by their last names.
    """
    before = read_commit(root, shard)
    assert before is not None, "only shards with pictures are embedded"
    table = read_table(metadata_path(root, shard))
    tar = tar_path(root, shard)
    features = ShardFeatures(pool, shard, str(tar))
    places = zip(table["jpg_offset"].to_pylist(), table["jpg_length"].to_pylist(), strict=True)
    with parts_of(tar) as part:
        for (offset, length), caption in zip(places, table["caption"].to_pylist(), strict=True):
            features.add(pool.crop(simplejpeg.decode_jpeg(part(offset, length), "RGBX")), caption)
    embedded = features.finish()
    after = replace(before, stage=EMBEDDED, devices=embedded.devices)
    files = write_rows(attempt, shard, embedded, name)
    if name is not None:
        record = clip_path(root, name)
        size = record.stat().st_size
        files[str(clip_path(Path(), name))] = FileRecord(sha256_file(record), size, 1)
        return replace(after, files=files, tar_sha256=tar_sha256(before))
    path = metadata_path(Path(), shard)
    files[str(path)] = write_parquet(attempt / path.name, with_columns(table, embedded, pool.info))
    return replace(after, files={**before.files, **files})


def write_rows(
    attempt: Path, shard: int, embedded: Embedded, name: str | None = None
) -> dict[str, FileRecord]:
    """Writes a shard's npy files; their records by their paths in the DATASET."""
    files: dict[str, FileRecord] = {}
    for path, rows in (
        (img_emb_path(Path(), shard, name), embedded.image),
        (text_emb_path(Path(), shard, name), embedded.text),
    ):
        files[str(path)] = write_embeddings(attempt / path.name, rows)
    return files


def with_columns(table: pa.Table, embedded: Embedded, info: ClipInfo) -> pa.Table:
    """Metadata with what embedding adds: three columns, and whose they are."""
    for column, values in embedded.columns.items():
        field = METADATA_SCHEMA.field(column)
        place = table.schema.get_field_index(column)
        table = table.set_column(place, field, pa.array(values, field.type))
    return with_note(table, CLIP_NOTE, asdict(info))


def _embed_task(
    pool: ClipPool, root: Place, work: Place, shard: int, name: str | None
) -> tuple[Place, Commit]:
    """The body of a Ray task: the attempt's folder, and the commit to publish."""
    with attempt_at(work, shard) as (folder, attempt):
        return attempt, embed_shard(pool, root, shard, name, folder)


def embed(
    dataset: Place,
    clip: str,
    name: str | None = None,
    config: EmbedConfig | None = None,
    *,
    ray_address: str | None = None,
    bar: Progress | None = None,
) -> DatasetInfo:
    """Adds embeddings to a DATASET: its first set, or with `name` a further one beside it.

    Goes on where an interrupted run ended, and does nothing when all is there; rows of a further
    set are made anew where the pictures were. The bytes are those of preparing with this CLIP in
    one pass. Samples are counted in a bar of their own, or in `bar`.

    Raises:
        UserError: `dataset` is none or unfinished, the CLIP cannot be loaded, or another CLIP's
            embeddings are there already.
    """
    _check_name(name)
    if clip == "none":
        raise UserError("clip: got 'none', expected a CLIP to embed with")
    spec = find_clip(clip)
    settings = config or EmbedConfig()
    read_dataset(dataset)
    with Lease(dataset):
        info = read_dataset(dataset)
        if is_embedded(dataset, info, spec, settings.precision, name):
            if bar is not None:
                bar.skip(info.kept)
            return info
        require_pictures(dataset, info)
        if spec.kind == "published":  # told before Ray starts
            raise UserError(f"clip: {clip} names embeddings; expected a CLIP to embed with")
        with work_folder(dataset) as work, cluster(ray_address) as ray, StopFlag() as stop:
            pool = start_pool(ray, clip, settings, info.shards, stop)
            embed_all(ray, dataset, work, info.shards, pool, name, stop, bar)
        if name is None:
            info = replace(info, clip=pool.info)
            write_json(dataset / DATASET_FILE, info.to_json())
    return info


def is_embedded(
    root: Place,
    info: DatasetInfo,
    spec: ClipSpec,
    precision: Precision = "fp32",
    name: str | None = None,
) -> bool:
    """Whether the set is known to be complete and of this CLIP, without loading it."""
    known = info.clip
    if name is not None:
        path = clip_path(root, name)
        known = clip_from_json(read_json(path)) if path.is_file() else None
    if known is None or not spec.is_for(known) or known.precision != precision:
        return False
    return len(done(root, range(info.shards), EMBEDDED, name)) == info.shards


def require_pictures(dataset: Place, info: DatasetInfo) -> None:
    """Raises UserError where there are published embeddings alone: nothing else can be made."""
    if info.clip is not None and info.clip.published:
        whose = f"{info.clip.model} {info.clip.pretrained}"
        raise UserError(f"{dataset}: holds embeddings of {whose} and no pictures to embed")


def _check_name(name: str | None) -> None:
    if name is not None and not (name.replace("-", "").replace("_", "").isalnum()):
        raise UserError(f"name: got {name!r}, expected letters, digits, - and _")


def embed_all(
    ray: Any,
    root: Place,
    work: Place,
    shards: int,
    pool: ClipPool,
    name: str | None,
    stop: StopFlag,
    whole: Progress | None = None,
) -> None:
    """Embeds every shard that is not.

    Raises:
        UserError: the set holds another CLIP's rows, or a shard cannot be embedded.
    """
    claim(root, shards, name, pool.info)
    commits = list(read_commits(root, range(shards)))
    kept = [commit.kept if commit else 0 for commit in commits]
    there = done(root, range(shards), EMBEDDED, name)
    todo = [s for s in range(shards) if s not in there]
    if not todo:
        return
    task = ray.remote(max_retries=3, scheduling_strategy="SPREAD")(_embed_task)
    shared = ray.put(pool)

    def submit(shard: int) -> Any:
        return task.remote(shared, root.absolute(), work.absolute(), shard, name)

    before = sum(kept) - sum(kept[s] for s in todo)
    with share_of(whole, "embed", sum(kept), "samples", before) as bar:
        for shard in todo:
            commit = commits[shard]
            if commit is not None and not kept[shard]:
                nothing = replace(commit, stage=EMBEDDED, files=_own(commit, name))
                write_commit(root, nothing, name)
        full = [shard for shard in todo if kept[shard]]
        made = run_bounded(ray, submit, full, cpus(ray), stop)
        for commit in publish_all(root, made, name):
            bar.advance(commit.kept)


def _own(commit: Commit, name: str | None) -> Mapping[str, FileRecord]:
    """The files of a shard of which nothing was kept; a further set has none of them."""
    return commit.files if name is None else {}


def first_set(root: Place, shards: int) -> ClipInfo | None:
    """Whose the embeddings are that some shard has."""
    commits = read_commits(root, range(shards))
    there = next((c for c in commits if c and c.kept and c.stage == EMBEDDED), None)
    if there is None:
        return None
    return clip_from_json(read_note(read_schema(metadata_path(root, there.shard)), CLIP_NOTE))


def claim(root: Place, shards: int, name: str | None, info: ClipInfo) -> None:
    """Refuses to mix CLIPs within one set of embeddings.

    Raises:
        UserError: the set has rows of another one; which, and in what they differ.
    """
    if name is None:
        known = first_set(root, shards)
    elif clip_path(root, name).is_file():
        known = clip_from_json(read_json(clip_path(root, name)))
    else:
        write_json(clip_path(root, name), asdict(info))
        return
    if known is not None and known != info:
        differing = ", ".join(k for k, v in asdict(info).items() if asdict(known)[k] != v)
        raise UserError(
            f"{embedding_root(root, name)}: has embeddings of {known.model} {known.pretrained}, "
            f"which differs from this CLIP in {differing}; "
            "give the same CLIP, or a name for a further set (--as NAME)"
        )
