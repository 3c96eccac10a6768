"""CLIP embeddings of a DATASET's shards, made by a pool of actors from the stored pictures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg

from base.errors import UserError
from base.files import read_json, sha256_file, write_json
from base.lease import Lease
from base.progress import Progress, share_of
from base.stop import StopFlag
from data_pipeline.attempts import new_attempt, work_folder
from data_pipeline.clip_spec import ClipSpec, find_clip
from data_pipeline.cluster import actor_pool, cluster, cores, run_bounded
from data_pipeline.commits import is_done, publish, write_commit
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

if TYPE_CHECKING:
    from data_pipeline.clip import Clip

ROWS_PER_BATCH = 128  # of one shard, cut from its first row on: part of what makes equal bytes
CLIP_NOTE = "clip"  # metadata files say which CLIP their columns come from
_THREADS = 1  # per actor, whatever the machine has: sums in another order give other bytes


class Embedder:
    """The body of an actor: keeps one CLIP loaded and embeds whole shards."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._loaded: tuple[str, Clip] | None = None

    def describe(self, spec: str) -> ClipInfo:
        """Loads the CLIP; which one it is."""
        return self._clip(spec).info

    def embed(
        self, spec: str, root: Path, work: Path, shard: int, name: str | None
    ) -> tuple[Path, Commit]:
        """Embeds a shard: the attempt's folder, and the commit to publish."""
        attempt = new_attempt(work, shard)
        return attempt, embed_shard(self._clip(spec), root, shard, name, attempt)

    def _clip(self, spec: str) -> Clip:
        if self._loaded is None or self._loaded[0] != spec:
            import torch

            from data_pipeline.clip import load_clip

            torch.set_num_threads(_THREADS)
            self._loaded = (spec, load_clip(spec, self._device))
        return self._loaded[1]


def embed_shard(clip: Clip, root: Path, shard: int, name: str | None, attempt: Path) -> Commit:
    """Writes npy files, and for the first set the metadata with its three columns filled in.

    They lie in the folder `attempt` by their last names.
    """
    before = read_commit(root, shard)
    assert before is not None, "only shards with pictures are embedded"
    table = pq.read_table(metadata_path(root, shard))
    image, text, columns = _features(clip, tar_path(root, shard), table)
    files: dict[str, FileRecord] = {}
    for path, rows in (
        (img_emb_path(Path(), shard, name), image),
        (text_emb_path(Path(), shard, name), text),
    ):
        files[str(path)] = write_embeddings(attempt / path.name, rows)
    if name is not None:
        record = clip_path(root, name)
        size = record.stat().st_size
        files[str(clip_path(Path(), name))] = FileRecord(sha256_file(record), size, 1)
        return replace(before, stage=EMBEDDED, files=files)
    for column, values in columns.items():
        field = METADATA_SCHEMA.field(column)
        table = table.set_column(
            table.schema.get_field_index(column), field, pa.array(values, field.type)
        )
    path = metadata_path(Path(), shard)
    noted = with_note(table, CLIP_NOTE, asdict(clip.info))
    files[str(path)] = write_parquet(attempt / path.name, noted)
    return replace(before, stage=EMBEDDED, files={**before.files, **files})


def _features(
    clip: Clip, tar: Path, table: pa.Table
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.float16], dict[str, npt.NDArray[np.float32]]]:
    """Stored rows of pictures and captions, float16 [n, D] each, and their three columns [n]."""
    import torch

    image: list[torch.Tensor] = []
    text: list[torch.Tensor] = []
    offsets, lengths = table["jpg_offset"].to_pylist(), table["jpg_length"].to_pylist()
    captions = table["caption"].to_pylist()
    with tar.open("rb") as file, torch.inference_mode():
        for start in range(0, len(captions), ROWS_PER_BATCH):
            rows = range(start, min(start + ROWS_PER_BATCH, len(captions)))
            jpegs = (os.pread(file.fileno(), lengths[i], offsets[i]) for i in rows)
            image.append(clip.images([simplejpeg.decode_jpeg(jpeg) for jpeg in jpegs]).cpu())
            text.append(clip.texts([captions[i] for i in rows]).cpu())
    images, img_norm = _normalised(torch.cat(image), "image", tar)
    texts, text_norm = _normalised(torch.cat(text), "text", tar)
    return (
        images,
        texts,
        {
            "similarity": cosine(images, texts),
            "img_norm": img_norm,
            "text_norm": text_norm,
        },
    )


def _normalised(
    features: Any, kind: str, tar: Path
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.float32]]:
    """Rows of norm 1 in float16, divided in float32, and the norms they had."""
    norms = features.norm(dim=-1, keepdim=True)  # [n, 1]
    if not bool((norms > 0).all()) or not bool(norms.isfinite().all()):
        raise UserError(f"{tar}: the CLIP gives {kind} features that are zero or not finite")
    rows = (features / norms).numpy().astype(np.float16)
    return rows, norms[:, 0].numpy().astype(np.float32)


def cosine(
    left: npt.NDArray[np.float16], right: npt.NDArray[np.float16]
) -> npt.NDArray[np.float32]:
    """Cosine of the stored rows, [n], computed in float64."""
    a, b = left.astype(np.float64), right.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(axis=1) / norms, np.float32)


def embed(
    dataset: Path,
    clip: str,
    name: str | None = None,
    *,
    ray_address: str | None = None,
    bar: Progress | None = None,
) -> DatasetInfo:
    """Adds embeddings to a DATASET: its first set, or with `name` a further one beside it.

    Goes on where an interrupted run ended, and does nothing when all is there. The bytes are those
    of preparing with this CLIP in one pass. Samples are counted in a bar of their own, or in `bar`.

    Raises:
        UserError: `dataset` is none or unfinished, the CLIP cannot be loaded, or another CLIP's
            embeddings are there already.
    """
    _check_name(name)
    if clip == "none":
        raise UserError("clip: got 'none', expected a CLIP to embed with")
    spec = find_clip(clip)
    read_dataset(dataset)
    with Lease(dataset):
        info = read_dataset(dataset)
        if is_embedded(dataset, info, spec, name):
            if bar is not None:
                bar.skip(info.kept)
            return info
        require_pictures(dataset, info)
        with work_folder(dataset) as work, cluster(ray_address) as ray, StopFlag() as stop:
            used = embed_all(ray, dataset, work, info.shards, clip, name, stop, bar)
        if name is None:
            info = replace(info, clip=used)
            write_json(dataset / DATASET_FILE, info.to_json())
    return info


def is_embedded(root: Path, info: DatasetInfo, spec: ClipSpec, name: str | None = None) -> bool:
    """Whether the set is known to be complete and of this CLIP, without loading it."""
    known = info.clip
    if name is not None:
        path = clip_path(root, name)
        known = clip_from_json(read_json(path)) if path.is_file() else None
    if known is None or not spec.is_for(known):
        return False
    return all(is_done(root, shard, EMBEDDED, name) for shard in range(info.shards))


def require_pictures(dataset: Path, info: DatasetInfo) -> None:
    """Raises UserError where there are published embeddings alone: nothing else can be made."""
    if info.clip is not None and info.clip.published:
        whose = f"{info.clip.model} {info.clip.pretrained}"
        raise UserError(f"{dataset}: holds embeddings of {whose} and no pictures to embed")


def _check_name(name: str | None) -> None:
    if name is not None and not (name.replace("-", "").replace("_", "").isalnum()):
        raise UserError(f"name: got {name!r}, expected letters, digits, - and _")


def embed_all(
    ray: Any,
    root: Path,
    work: Path,
    shards: int,
    clip: str,
    name: str | None,
    stop: StopFlag,
    whole: Progress | None = None,
) -> ClipInfo:
    """Embeds every shard that is not; the CLIP that was used."""
    commits = [read_commit(root, shard) for shard in range(shards)]
    kept = [commit.kept if commit else 0 for commit in commits]
    actors = _actors(ray, min(shards, sum(count > 0 for count in kept)))
    info = describe(ray, clip, stop)
    _claim(root, commits, name, info)
    todo = [s for s in range(shards) if not is_done(root, s, EMBEDDED, name)]
    free, busy = list(actors), dict[int, Any]()

    def submit(shard: int) -> Any:
        busy[shard] = free.pop()
        return busy[shard].embed.remote(clip, root.absolute(), work.absolute(), shard, name)

    done = sum(kept) - sum(kept[s] for s in todo)
    with share_of(whole, "embed", sum(kept), "samples", done) as bar:
        for shard in todo:
            commit = commits[shard]
            if commit is not None and not kept[shard]:
                nothing = replace(commit, stage=EMBEDDED, files=_own(commit, name))
                write_commit(root, nothing, name)
        full = [shard for shard in todo if kept[shard]]
        for shard, (attempt, commit) in run_bounded(ray, submit, full, len(actors), stop):
            free.append(busy.pop(shard))
            publish(root, attempt, commit, name)
            bar.advance(kept[shard])
    return info


def _own(commit: Commit, name: str | None) -> Mapping[str, FileRecord]:
    """The files of a shard of which nothing was kept; a further set has none of them."""
    return commit.files if name is None else {}


def _actors(ray: Any, shards: int) -> list[Any]:
    """One actor for each GPU of the cluster, or for each CPU where there is none."""
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    count = max(1, min(shards, gpus or int(resources.get("CPU", cores()))))
    kind = ray.remote(max_restarts=3, max_task_retries=3, scheduling_strategy="SPREAD")(Embedder)
    if gpus:
        return actor_pool(ray, "gpu", count, lambda: kind.options(num_gpus=1).remote("cuda"))
    return actor_pool(ray, "cpu", count, lambda: kind.remote("cpu"))


def describe(ray: Any, clip: str, stop: StopFlag) -> ClipInfo:
    """Which CLIP the string names; interruptible, as loading may take long.

    Raises:
        UserError: it cannot be loaded.
    """
    (actor,) = _actors(ray, 1)
    ((_, info),) = run_bounded(ray, lambda _: actor.describe.remote(clip), [0], 1, stop)
    return cast(ClipInfo, info)


def _claim(root: Path, commits: Sequence[Commit | None], name: str | None, info: ClipInfo) -> None:
    """Refuses to mix CLIPs within one set of embeddings."""
    if name is None:
        there = next((c for c in commits if c and c.kept and c.stage == EMBEDDED), None)
        if there is None:
            return
        note = read_note(pq.read_schema(metadata_path(root, there.shard)), CLIP_NOTE)
    elif clip_path(root, name).is_file():
        note = read_json(clip_path(root, name))
    else:
        write_json(clip_path(root, name), asdict(info))
        return
    known = clip_from_json(note)
    if known != info:
        differing = ", ".join(k for k, v in asdict(info).items() if asdict(known)[k] != v)
        raise UserError(
            f"{embedding_root(root, name)}: has embeddings of {known.model} {known.pretrained}, "
            f"which differs from this CLIP in {differing}; "
            "give the same CLIP, or a name for a further set (--as NAME)"
        )
