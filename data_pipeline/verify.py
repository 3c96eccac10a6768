"""Proves a DATASET from its bytes: hashes, counts, order, alignment, norms, nothing left over."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from base.errors import UserError
from base.places import Place, children, files_below
from base.progress import Progress
from base.scratch import scratch_folder
from base.store_errors import StoreError
from data_pipeline.check_selections import check_selections
from data_pipeline.check_shard import (
    check_current,
    check_embeddings,
    check_metadata,
    check_no_tar,
    check_rejected,
    check_tar,
)
from data_pipeline.commits import device_kinds
from data_pipeline.curate.samples import end_to_end
from data_pipeline.plan import first_row, plan_fingerprint, planned_rows, read_config
from data_pipeline.problems import Problems
from data_pipeline.schema.dataset import (
    CONFIG_FILE,
    DATASET_FILE,
    EMBEDDED,
    PIXELS,
    PLACES_FILE,
    PLAN_FILE,
    SIZES_FILE,
    Commit,
    DatasetInfo,
    clip_path,
    commit_path,
    img_emb_path,
    metadata_path,
    read_commit,
    read_dataset,
    rejected_path,
    shard_name,
)
from data_pipeline.schema.selection import FOLDER
from data_pipeline.search.check import check_indexes
from data_pipeline.search.layout import INDEX
from data_pipeline.shard_files import ShardFiles

_COPIED_AT_ONCE = 1 << 20
_FOLDERS = ("plan", "shards", "img_emb", "text_emb", "metadata", "rejected", "commits")
_OURS_TOO = ("selections", "embeddings", INDEX)  # later additions to a DATASET


@dataclass(frozen=True)
class VerifyReport:
    """What was looked at and what is wrong; whole when `problems` is empty."""

    dataset: str
    shards: int
    samples: int
    files: int
    bytes: int
    embeddings: tuple[str, ...]  # "" is the first set
    devices: Mapping[str, tuple[str, ...]]  # what computed each set: cpu, or GPUs by their names
    problems: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


@dataclass
class _ShardResult:
    problems: Problems = field(default_factory=Problems)
    commit: Commit | None = None  # of the shard itself
    further: dict[str, Commit] = field(default_factory=dict)  # of further embedding sets


def verify(dataset: Place) -> VerifyReport:
    """Reads every byte of a DATASET and compares it with what the contract promises.

    Raises:
        UserError: `dataset` is none, or unfinished.
    """
    info = read_dataset(dataset)
    names: list[str | None] = [None] if info.clip else []
    folder = dataset / "embeddings"
    names += sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    problems = Problems()
    planned = _guarded(problems, PLAN_FILE, lambda: planned_rows(dataset)) or []
    begin = _guarded(problems, PLAN_FILE, lambda: first_row(dataset)) or 0
    starts = list(itertools.accumulate(planned, initial=begin))
    results: list[_ShardResult] = []

    def check(shard: int) -> _ShardResult:
        first = starts[shard] if shard < len(starts) else 0
        return _check_shard(dataset, info, shard, first, names)

    with (
        Progress("verify", total=info.input, unit="rows") as bar,
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool,
    ):
        for shard, result in enumerate(pool.map(check, range(info.shards))):
            results.append(result)
            problems.found += result.problems.found
            bar.advance(planned[shard] if shard < len(planned) else 0)
    commits = [result.commit for result in results if result.commit is not None]
    _check_stages(dataset, info, commits, problems)
    _check_totals(dataset, info, planned, commits, problems)
    sets: dict[str | None, list[Commit]] = {None: commits}
    for name in names:
        if name is not None:
            sets[name] = [r.further[name] for r in results if name in r.further]
    every = list(itertools.chain.from_iterable(sets.values()))
    files = {path: record for commit in every for path, record in commit.files.items()}
    _check_nothing_else(dataset, info, set(files), names, problems)
    _guarded(problems, FOLDER, lambda: _check_selections(dataset, info, commits, problems))
    _guarded(problems, INDEX, lambda: check_indexes(dataset, info, sets, problems))
    return VerifyReport(
        dataset=str(dataset),
        shards=info.shards,
        samples=sum(commit.kept for commit in commits),
        files=len(files),
        bytes=sum(record.bytes for record in files.values()),
        embeddings=tuple(name or "" for name in names),
        devices={name or "": device_kinds(sets[name]) for name in names},
        problems=tuple(problems.found),
    )


def _check_selections(
    dataset: Place, info: DatasetInfo, commits: list[Commit], problems: Problems
) -> None:
    if not (dataset / FOLDER).is_dir():
        return
    if len(commits) < info.shards:
        problems.add(FOLDER, "cannot be checked while commits are missing")
        return
    with _local(dataset, FOLDER) as root:
        check_selections(end_to_end(root, info, commits, pa.schema([])), problems)


@contextmanager
def _local(root: Place, folder: str) -> Iterator[Path]:
    """A local root that holds the folder: a copy of what a store has."""
    if isinstance(root, Path):
        yield root
        return
    with scratch_folder() as scratch:
        for path in files_below(root / folder):
            target = scratch / folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with (root / folder / path).open("rb") as source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy, _COPIED_AT_ONCE)
        yield scratch


def _guarded(problems: Problems, what: str, action: Callable[[], Any]) -> Any:
    """The action's result; whatever it raises becomes a problem."""
    try:
        return action()
    except StoreError:
        raise  # says nothing about the DATASET
    except Exception as error:  # damaged files make libraries raise anything
        told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        problems.add(what, " ".join(told.split())[:300] or type(error).__name__)
        return None


def _check_shard(
    root: Place, info: DatasetInfo, shard: int, first_row: int, names: list[str | None]
) -> _ShardResult:
    result = _ShardResult()
    problems = result.problems
    files = ShardFiles(root, problems)
    for name in [None, *[name for name in names if name is not None]]:
        path = commit_path(Path(), shard, name)
        commit = _guarded(problems, str(path), partial(read_commit, root, shard, name))
        if commit is None:
            problems.add(path, "missing or unreadable")
            continue
        _check_commit(root, path, commit, shard, problems)
        files.expect(commit.files)
        if name is None:
            result.commit = commit
        else:
            result.further[name] = commit
            if result.commit is not None:
                check_current(path, commit, result.commit, problems)
    commits = [result.commit, *result.further.values()] if result.commit is not None else []
    if commits and all((root / name).is_file() for c in commits for name in c.files):
        _check_content(files, info, commits[0], first_row, names, problems)
    files.read_rest()
    return result


def _check_commit(root: Place, path: Path, commit: Commit, shard: int, problems: Problems) -> None:
    problems.expect(path, "shard", commit.shard, shard)
    problems.expect(path, "kept + rejected", commit.kept + commit.rejected, commit.input)
    if commit.stage not in (PIXELS, EMBEDDED):
        problems.add(path, f"stage: got {commit.stage!r}")
    _expect_canonical(root / path, commit.to_json(), problems, path)


def _expect_canonical(file: Place, value: Any, problems: Problems, shown: object) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    if file.read_bytes() != text.encode():
        problems.add(shown, "is not written as we write it: it was changed")


def _check_content(
    files: ShardFiles,
    info: DatasetInfo,
    commit: Commit,
    first_row: int,
    names: list[str | None],
    problems: Problems,
) -> None:
    shard, expected = commit.shard, _expected_files(commit, info)
    if set(commit.files) != expected:
        odd = sorted(set(commit.files) ^ expected)[0]
        problems.add(commit_path(Path(), shard), f"files: {odd} is wrongly there or missing")
        return
    rejected = _guarded(
        problems,
        str(rejected_path(Path(), shard)),
        lambda: check_rejected(files, commit, problems),
    )
    kept: list[int] | None = []
    if commit.kept:
        where = str(metadata_path(Path(), shard))
        table = _guarded(problems, where, lambda: files.table(Path(where)))
        if table is None:
            return
        kept = _guarded(problems, where, lambda: check_metadata(table, commit, info, problems))
        where = f"shards/{shard_name(shard)}.tar"
        check_pictures = check_tar if info.has_pictures else check_no_tar
        _guarded(problems, where, lambda: check_pictures(files, commit, table, problems))
        for name in names:
            if name is None and commit.stage != EMBEDDED:
                continue
            where = str(img_emb_path(Path(), shard, name))
            check = partial(check_embeddings, files, commit, table, info, name, problems)
            _guarded(problems, where, check)
    if kept is not None and rejected is not None:
        rows = list(range(first_row, first_row + commit.input))
        if sorted([*kept, *rejected]) != rows:
            problems.add(f"shard {shard_name(shard)}", "kept and rejected are not its planned rows")


def _expected_files(commit: Commit, info: DatasetInfo) -> set[str]:
    name = shard_name(commit.shard)
    expected = {f"rejected/rejected_{name}.parquet"}
    if commit.kept:
        expected |= {f"shards/{name}.tar", f"metadata/metadata_{name}.parquet"}
        if not info.has_pictures:
            optional = {f"text_emb/text_emb_{name}.npy"} & set(commit.files)
            expected |= optional | {f"img_emb/img_emb_{name}.npy"}
            expected.remove(f"shards/{name}.tar")
        elif commit.stage == EMBEDDED:
            expected |= {f"img_emb/img_emb_{name}.npy", f"text_emb/text_emb_{name}.npy"}
    return expected


def _check_stages(
    root: Place, info: DatasetInfo, commits: list[Commit], problems: Problems
) -> None:
    """That all shards are embedded or none is; told first, because other problems follow of it."""
    bare = [commit.shard for commit in commits if commit.stage == PIXELS]
    if not any(commit.stage == EMBEDDED for commit in commits) and info.clip is None:
        return
    if bare:
        some = f"embeddings of {len(bare)} of {info.shards} shards are missing"
        what = f"{some} (the first is shard {shard_name(bare[0])})"
    elif info.clip is None:
        what = "clip is null, though every shard has embeddings"
    else:
        return
    told = Problems()
    told.add(DATASET_FILE, f"{what}; run `unclip data embed {root} --clip CLIP` again")
    problems.found[:0] = told.found


def _check_totals(
    root: Place,
    info: DatasetInfo,
    planned: list[int],
    commits: list[Commit],
    problems: Problems,
) -> None:
    where = DATASET_FILE
    problems.expect(where, "shards", info.shards, len(planned))
    for name in ("input", "kept", "rejected"):
        total = sum(getattr(commit, name) for commit in commits)
        problems.expect(where, name, getattr(info, name), total)
    problems.expect(where, "input (of the plan)", info.input, sum(planned))
    for commit in commits:
        if commit.shard < len(planned):
            problems.expect(
                commit_path(Path(), commit.shard), "input", commit.input, planned[commit.shard]
            )
    fingerprint = _guarded(problems, PLAN_FILE, lambda: plan_fingerprint(root))
    problems.expect(where, "plan_fingerprint", info.plan_fingerprint, fingerprint)
    config = _guarded(problems, CONFIG_FILE, lambda: read_config(root))
    if config is not None:
        side = config.image_size if info.has_pictures else 0
        problems.expect(where, "image_size", info.image_size, side)
    _guarded(
        problems, where, lambda: _expect_canonical(root / where, info.to_json(), problems, where)
    )
    with_tars = [c for c in commits if c.kept and info.has_pictures]
    sizes = {f"{shard_name(c.shard)}.tar": c.kept for c in with_tars}
    _guarded(
        problems,
        SIZES_FILE,
        lambda: _expect_canonical(root / SIZES_FILE, sizes, problems, SIZES_FILE),
    )


def _check_nothing_else(
    root: Place, info: DatasetInfo, files: set[str], names: list[str | None], problems: Problems
) -> None:
    known = files | {DATASET_FILE, PLAN_FILE, CONFIG_FILE, PLACES_FILE, SIZES_FILE}
    known |= {str(commit_path(Path(), shard)) for shard in range(info.shards)}
    for name in names:
        known |= {str(commit_path(Path(), shard, name)) for shard in range(info.shards)}
        known |= set() if name is None else {str(clip_path(Path(), name))}
    for path in _all_files(root, names):
        if path not in known:
            problems.add(path, "does not belong to the DATASET")


def _all_files(root: Place, names: list[str | None]) -> Iterator[str]:
    for item in children(root):
        known = (*_FOLDERS, *_OURS_TOO) if item.is_dir() else (DATASET_FILE,)
        if item.name not in known and item.suffix != ".lock":
            yield item.name
    tops = [*_FOLDERS, *(f"embeddings/{name}" for name in names if name)]
    for top in tops:
        for path in files_below(root / top):
            yield f"{top}/{path}"


def require_whole(report: VerifyReport) -> None:
    """Raises UserError with the first problem and their number, when there is one."""
    if report.problems:
        count = len(report.problems)
        more = f" (and {count - 1} more)" if count > 1 else ""
        raise UserError(f"{report.dataset}: {report.problems[0]}{more}")
