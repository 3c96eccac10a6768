"""Where unfinished work lies: a folder of the run's own, and in it one for each attempt at a shard.

A run that was killed may leave workers behind that have not noticed. What they still write must
neither reach the DATASET nor stay in it, so a run's folder is given another name before it is
emptied: whoever comes too late finds no folder, and nothing here makes missing parents.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_pipeline.schema.dataset import WORK_FOLDER


@contextmanager
def work_folder(root: Path) -> Iterator[Path]:
    """An empty folder for one run; what is in it, or left of earlier runs, is gone at the end."""
    _clear(root)
    run = root / WORK_FOLDER / _token()
    run.mkdir(parents=True)
    try:
        yield run
    finally:
        _clear(root)


def new_attempt(run: Path, shard: int) -> Path:
    """An empty folder for an attempt at a shard; files lie in it by their last names.

    Raises:
        FileNotFoundError: the run is over.
    """
    return Path(tempfile.mkdtemp(prefix=f"{shard:05d}-", dir=run))


def _clear(root: Path) -> None:
    work = root / WORK_FOLDER
    for run in list(work.iterdir()) if work.is_dir() else ():
        with suppress(OSError):
            run.rename(work / f"gone-{_token()}")
    shutil.rmtree(work, ignore_errors=True)


def _token() -> str:
    return os.urandom(6).hex()
