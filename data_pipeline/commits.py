"""Publishing a finished shard: files to their names, then the commit; the first one wins."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from base.ahead import map_ahead
from base.files import write_json
from base.lease import require_held
from base.places import Place
from base.stores import StorePath
from data_pipeline.schema.dataset import (
    EMBEDDED,
    Commit,
    commit_path,
    read_commit,
    tar_path,
)

NOT_RECORDED = "not recorded"  # of published embeddings, and by earlier versions
_REQUESTS = 32  # to a store at once
_SHARDS = 8  # that are published to a store at once: mostly waiting


def is_done(root: Place, shard: int, stage: str, name: str | None = None) -> bool:
    """Whether the shard reached `stage` and its files are there with their committed sizes.

    Of a further set also whether it was made of the pictures that are there now.
    """
    commit = read_commit(root, shard, name)
    current = name is None or is_current(commit, read_commit(root, shard))
    return current and _is_whole(commit, stage, lambda path: _size(root / path))


def done(root: Place, shards: Iterable[int], stage: str, name: str | None = None) -> set[int]:
    """The shards that are done; a store is asked for a list of its objects, not for each."""
    shards = list(shards)
    if not isinstance(root, StorePath):
        return {shard for shard in shards if is_done(root, shard, stage, name)}
    sizes = {str(path.relative_to(root)): path.stat().st_size for path in root.rglob()}
    there = [shard for shard in shards if str(commit_path(Path(), shard, name)) in sizes]
    commits = list(read_commits(root, there, name))
    own = commits if name is None else list(read_commits(root, there))
    return {
        shard
        for shard, commit, of_shard in zip(there, commits, own, strict=True)
        if (name is None or is_current(commit, of_shard)) and _is_whole(commit, stage, sizes.get)
    }


def tar_sha256(own: Commit) -> str | None:
    """Of the tar that a shard's own commit tells of; None where nothing was kept."""
    record = own.files.get(str(tar_path(Path(), own.shard)))
    return None if record is None else record.sha256


def is_current(further: Commit | None, own: Commit | None) -> bool:
    """Whether a further set's rows were made of the tar that the shard has."""
    if further is None or own is None:
        return False
    return further.tar_sha256 == tar_sha256(own)


def device_kinds(commits: Iterable[Commit]) -> tuple[str, ...]:
    """What computed the embeddings of some shards, where anything was to be computed."""
    embedded = [commit for commit in commits if commit.kept and commit.stage == EMBEDDED]
    return tuple(sorted({kind for c in embedded for kind in c.devices or (NOT_RECORDED,)}))


def _is_whole(commit: Commit | None, stage: str, size: Callable[[str], int | None]) -> bool:
    if commit is None or (stage == EMBEDDED and commit.stage != EMBEDDED):
        return False
    return all(size(path) == record.bytes for path, record in commit.files.items())


def _size(path: Place) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def read_commits(
    root: Place, shards: Iterable[int], name: str | None = None
) -> Iterator[Commit | None]:
    """The shards' commits, None where there is none; from a store several at once."""
    threads = _REQUESTS if isinstance(root, StorePath) else 1
    return map_ahead(lambda shard: read_commit(root, shard, name), shards, threads)


def publish_all(
    root: Place, made: Iterable[tuple[int, tuple[Place, Commit]]], name: str | None = None
) -> Iterator[Commit]:
    """Publishes (shard, (attempt, commit)) as they come; to a store several shards at once."""

    def one(item: tuple[int, tuple[Place, Commit]]) -> Commit:
        attempt, commit = item[1]
        publish(root, attempt, commit, name)
        return commit

    return map_ahead(one, made, _SHARDS if isinstance(root, StorePath) else 1)


def publish(root: Place, attempt: Place, commit: Commit, name: str | None = None) -> bool:
    """Moves what the attempt wrote (fsynced by its writers) into place and commits it.

    False when another attempt was committed before: its bytes stay.
    """
    require_held(root)
    first = not is_done(root, commit.shard, commit.stage, name)
    if first:
        written = {path.name: path for path in attempt.iterdir()}
        new = [path for path in commit.files if Path(path).name in written]
        for _ in map_ahead(
            lambda path: _move(written[Path(path).name], root / path),
            new,
            _REQUESTS if isinstance(root, StorePath) else 1,
        ):
            pass
        if not isinstance(root, StorePath):
            for folder in {(root / path).parent for path in new}:
                _sync_folder(folder)
        write_commit(root, commit, name)
    if isinstance(attempt, StorePath):
        attempt.remove_below()
    else:
        shutil.rmtree(attempt, ignore_errors=True)
    return first


def _move(source: Place, target: Place) -> None:
    """Gives a file its last name; in a store by a copy there, which is whole or absent."""
    if isinstance(source, StorePath) and isinstance(target, StorePath):
        source.copy_to(target)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(str(source), str(target))


def write_commit(root: Place, commit: Commit, name: str | None = None) -> None:
    """Commits a shard whose files, if it has any, are in place."""
    write_json(commit_path(root, commit.shard, name), commit.to_json())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
