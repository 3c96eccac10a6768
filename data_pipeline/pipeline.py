"""From inputs to a DATASET: plan, one Ray task a shard, commits, totals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from base.errors import UserError
from base.files import require_free_space, write_json
from base.lease import Lease
from base.places import Anywhere, Place
from base.progress import Progress, share_of
from base.stop import StopFlag
from data_pipeline import columns, sources
from data_pipeline.attempts import attempt_at, work_folder
from data_pipeline.clip_pool import ClipPool, start_pool
from data_pipeline.clip_spec import ClipSpec, find_clip
from data_pipeline.cluster import cluster, cpus, run_bounded
from data_pipeline.commits import done, publish_all, read_commits
from data_pipeline.config import PrepareConfig
from data_pipeline.embed import claim, embed_all, first_set, is_embedded
from data_pipeline.fetch.lists import settled
from data_pipeline.nothing_kept import ask_again, require_kept
from data_pipeline.plan import ShardPlan, TooManyShards, agreed, persist, plan_fingerprint
from data_pipeline.schema.dataset import (
    DATASET_FILE,
    PIXELS,
    PLAN_FILE,
    SIZES_FILE,
    VERSION,
    WORK_FOLDER,
    ClipInfo,
    Commit,
    DatasetInfo,
    read_dataset,
    shard_name,
)
from data_pipeline.sources import Source
from data_pipeline.vectors import make_vector_shard, used_clip, with_clip
from data_pipeline.whereabouts import note_places

_LEAST_BYTES_PER_ROW = 4096  # headers and padding alone; a full disk later is told all the same
_TASKS_PER_CPU = 2  # under way: one at work, one waiting


def prepare(
    inputs: Sequence[Anywhere],
    out: Place,
    clip: str = "none",
    config: PrepareConfig | None = None,
    *,
    ray_address: str | None = None,
    bar: Progress | None = None,
) -> DatasetInfo:
    """Makes the DATASET `out` from folders of pairs, tables and webdataset tars.

    Goes on where an interrupted run ended and ends with the same bytes as one never interrupted.
    A finished DATASET of the same inputs and config is left as it is (embeddings are added when
    it has none and `clip` asks for them). Rows are counted in a bar of their own, or in `bar`.

    Raises:
        TooManyShards: the inputs make more than a DATASET holds.
        UserError: bad inputs; inputs, config or CLIP other than `out` was begun with; `out` in use.
        NothingUsable: no rows, or none that could be kept.
        Stopped, KeyboardInterrupt: asked to stop; what was committed stays.
    """

    settings = config or PrepareConfig()

    def scan(work: Place) -> list[Source]:
        return sources.scan(inputs, work, settings.columns)

    return prepare_sources(scan, out, clip, settings, ray_address=ray_address, bar=bar)


def prepare_parts(
    inputs: Sequence[Anywhere],
    out: Place,
    clip: str = "none",
    config: PrepareConfig | None = None,
    *,
    ray_address: str | None = None,
) -> Iterator[tuple[Place, DatasetInfo]]:
    """`prepare` of inputs of any size: `out`, or `out`-000, `out`-001, … of 10⁵ shards each.

    Rows keep their positions in the whole input. However many parts there are, it is scanned twice:
    to learn their number, and for all of them. Errors are those of `prepare`.
    """
    settings = config or PrepareConfig()
    try:
        info = prepare(inputs, out, clip, settings, ray_address=ray_address)
    except TooManyShards as too_many:
        parts = too_many.parts
    else:
        yield out, info
        return
    with _removed_if_empty(out), Lease(out), work_folder(out) as work:  # for the listings alone
        found = sources.scan(inputs, work, settings.columns)
        for part in range(parts):
            place = out.parent / f"{out.name}-{part:03d}"
            made = prepare_sources(
                lambda _: found, place, clip, settings, ray_address=ray_address, part=part
            )
            yield place, made


def prepare_sources(
    scan: Callable[[Place], list[Source]],
    out: Place,
    clip: str,
    config: PrepareConfig,
    *,
    ray_address: str | None = None,
    bar: Progress | None = None,
    part: int | None = None,
) -> DatasetInfo:
    """`prepare` of what `scan` finds; it is given a folder for what must be listed."""
    config = config.model_copy(update={"fetch": settled(config.fetch)})
    spec = None if clip == "none" else find_clip(clip)
    _check_target(out)
    with _removed_if_empty(out), Lease(out), work_folder(out) as work:
        found = with_clip(out, scan(work), spec)
        shards = agreed(out, found, config, part)
        if (info := _complete(out, spec, config)) is not None:
            note_places(out, found)
            if bar is not None:
                bar.skip(info.input)
            return info
        pool, used = None, used_clip(found)
        with cluster(ray_address) as ray, StopFlag() as stop:
            if spec is not None and used is None:
                pool = start_pool(ray, clip, config.embed, len(shards), stop)
            persist(out, found, config, part)  # now that Ray and the CLIP are known to be there
            if pool is not None:
                claim(out, len(shards), None, pool.info)
            ask_again(out, len(shards))
            _make_shards(ray, out, work, found, shards, config, pool, stop, bar)
            require_kept(out, len(shards))
            if pool is not None:  # what an earlier run made without a CLIP
                embed_all(ray, out, work, len(shards), pool, None, stop)
        return _finish(out, shards, config, used if pool is None else pool.info)


@contextmanager
def _removed_if_empty(out: Place) -> Iterator[None]:
    """Leaves no empty folder behind, such as when nothing could be begun."""
    try:
        yield
    finally:
        with suppress(OSError):
            out.rmdir()


def _check_target(out: Place) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file, expected a folder")
    if out.is_dir() and not (out / PLAN_FILE).is_file():
        others = [p.name for p in out.iterdir() if p.suffix != ".lock"]
        others = sorted(name for name in others if name not in (WORK_FOLDER, "plan"))
        if others:
            raise UserError(
                f"{out}: is no DATASET and not empty (it holds {others[0]}); choose another --out"
            )


def _complete(out: Place, spec: ClipSpec | None, config: PrepareConfig) -> DatasetInfo | None:
    """The finished DATASET, when nothing is left to do."""
    if not (out / DATASET_FILE).is_file():
        return None
    info = read_dataset(out)
    if len(done(out, range(info.shards), PIXELS)) < info.shards:
        (out / DATASET_FILE).unlink()  # files were lost: until they are back it is not finished
        return None
    return info if spec is None or is_embedded(out, info, spec, config.embed.precision) else None


def _make_shards(
    ray: Any,
    out: Place,
    work: Place,
    found: Sequence[Source],
    shards: Sequence[ShardPlan],
    config: PrepareConfig,
    pool: ClipPool | None,
    stop: StopFlag,
    whole: Progress | None,
) -> None:
    there = done(out, range(len(shards)), PIXELS)
    todo = {plan.shard: plan for plan in shards if plan.shard not in there}
    total, left = sum(p.count for p in shards), sum(p.count for p in todo.values())
    require_free_space(out, left * _LEAST_BYTES_PER_ROW)
    extra = columns.union([source.extra for source in found])
    shared = ray.put((tuple(found), extra, config, pool))
    task = ray.remote(max_retries=3, scheduling_strategy="SPREAD")(_shard_task)

    def submit(shard: int) -> Any:
        return task.remote(shared, todo[shard], work.absolute())

    # A task that waits for the CLIP leaves its CPU to the next one: then more would pile up.
    limit = cpus(ray) * (_TASKS_PER_CPU if pool is None else 1)
    with share_of(whole, "prepare", total, "samples", total - left) as bar:
        for note in (note for source in found for note in source.notes):
            bar.log(note)
        known = first_set(out, len(shards)) if todo and pool is None else None
        if known is not None and not known.published:
            bar.log(
                f"{out}: the shards made now lack the embeddings that others have "
                f"({known.model} {known.pretrained}); run `unclip data embed` with that CLIP"
            )
        rejected = 0
        for commit in publish_all(out, run_bounded(ray, submit, todo, limit, stop)):
            rejected += commit.rejected
            bar.advance(commit.input, rejected=rejected)


def _shard_task(
    shared: tuple[tuple[Source, ...], Any, PrepareConfig, ClipPool | None],
    plan: ShardPlan,
    work: Place,
) -> tuple[Place, Commit]:
    """The body of a Ray task: the attempt's folder, and the commit to publish."""
    from data_pipeline.pixels import Job, make_shard

    make = make_shard if used_clip(shared[0]) is None else make_vector_shard
    with attempt_at(work, plan.shard) as (folder, attempt):
        return attempt, make(Job(plan, *shared), folder)


def _commits(out: Place, shards: int) -> Iterator[Commit]:
    for shard, commit in enumerate(read_commits(out, range(shards))):
        if commit is None:
            raise UserError(f"{out}: shard {shard} has no commit; run the same command again")
        yield commit


def _finish(
    out: Place, shards: Sequence[ShardPlan], config: PrepareConfig, clip: ClipInfo | None
) -> DatasetInfo:
    """Writes the totals; dataset.json last, because its presence says that all is there."""
    pictures = clip is None or not clip.published
    sizes: dict[str, int] = {}
    totals: Counter[str] = Counter()
    for commit in _commits(out, len(shards)):
        totals.update(input=commit.input, kept=commit.kept, rejected=commit.rejected)
        if commit.kept and pictures:
            sizes[f"{shard_name(commit.shard)}.tar"] = commit.kept
    write_json(out / SIZES_FILE, sizes)
    info = DatasetInfo(
        version=VERSION,
        input=totals["input"],
        kept=totals["kept"],
        rejected=totals["rejected"],
        shards=len(shards),
        image_size=config.image_size if pictures else 0,
        plan_fingerprint=plan_fingerprint(out),
        clip=clip,
    )
    write_json(out / DATASET_FILE, info.to_json())
    return info
