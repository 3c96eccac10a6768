"""Publishing a finished shard: files to their names, then the commit; the first one wins."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from base.files import write_json
from data_pipeline.schema.dataset import (
    EMBEDDED,
    Commit,
    commit_path,
    read_commit,
)


def is_done(root: Path, shard: int, stage: str, name: str | None = None) -> bool:
    """Whether the shard reached `stage` and its files are there with their committed sizes."""
    commit = read_commit(root, shard, name)
    if commit is None or (stage == EMBEDDED and commit.stage != EMBEDDED):
        return False
    return all(_has_size(root / path, record.bytes) for path, record in commit.files.items())


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


def publish(root: Path, attempt: Path, commit: Commit, name: str | None = None) -> bool:
    """Moves what the attempt wrote (fsynced by its writers) into place and commits it.

    False when another attempt was committed before: its bytes stay.
    """
    first = not is_done(root, commit.shard, commit.stage, name)
    if first:
        new = [root / path for path in commit.files if (attempt / Path(path).name).is_file()]
        for path in new:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(attempt / path.name, path)
        for folder in {path.parent for path in new}:
            _sync_folder(folder)
        write_commit(root, commit, name)
    shutil.rmtree(attempt, ignore_errors=True)
    return first


def write_commit(root: Path, commit: Commit, name: str | None = None) -> None:
    """Commits a shard whose files, if it has any, are in place."""
    write_json(commit_path(root, commit.shard, name), commit.to_json())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
