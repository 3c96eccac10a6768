"""Where unfinished work lies: a folder of the run's own, and in it one for each attempt at a shard.

A run that was killed may leave workers behind that have not noticed. What they still write must
neither reach the DATASET nor stay in it, so a run's folder is given another name before it is
emptied: whoever comes too late finds no folder, and nothing here makes missing parents. A store
has no folders; there it is an object that says that the run goes on, and it is looked for before
an attempt's files are put beside it and once more when they are.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

from base.places import P, Place
from base.scratch import scratch_folder
from base.store_errors import StoreError
from base.stores import StorePath, impatient
from data_pipeline.schema.dataset import WORK_FOLDER

_GOES_ON = "goes-on"


@contextmanager
def work_folder(root: P) -> Iterator[P]:
    """An empty folder for one run; what is in it, or left of earlier runs, is gone at the end.

    Raises:
        OSError, StoreError: it cannot be written to or emptied.
    """
    run: Place = root / WORK_FOLDER / _token()
    if isinstance(run, StorePath):
        with impatient():
            _clear_store(run.parent)
            (run / _GOES_ON).write_bytes(b"")
            (run / "probe").write_bytes(b"")
            (run / "probe").unlink()
    else:
        _clear(run.parent)
        run.mkdir(parents=True)
    try:
        yield cast(P, run)
    finally:
        if isinstance(run, StorePath):
            with suppress(StoreError), impatient():  # if it stays silent the next run does it
                _clear_store(run.parent)
        else:
            _clear(run.parent)


@contextmanager
def attempt_at(run: Place, shard: int) -> Iterator[tuple[Path, Place]]:
    """A local folder for the files of an attempt at a shard, by their last names, and their place.

    That is the same folder, or one in the store to which they are put at the end.

    Raises:
        FileNotFoundError: the run is over.
    """
    prefix = f"{shard:05d}-"
    if not isinstance(run, StorePath):
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=run))
        yield folder, folder
        return
    _require_going_on(run)
    attempt = run / f"{prefix}{_token()}"
    with scratch_folder() as folder:
        yield folder, attempt
        for file in sorted(folder.iterdir()):
            (attempt / file.name).upload(file)
    try:
        _require_going_on(run)
    except FileNotFoundError:
        attempt.remove_below()
        raise


def _require_going_on(run: StorePath) -> None:
    (run / _GOES_ON).stat()


def _clear(work: Path) -> None:
    for run in list(work.iterdir()) if work.is_dir() else ():
        with suppress(OSError):
            run.rename(work / f"gone-{_token()}")
    shutil.rmtree(work, ignore_errors=True)


def _clear_store(work: StorePath) -> None:
    for sign in [path for path in work.rglob() if path.name == _GOES_ON]:
        sign.unlink()
    work.remove_below()


def _token() -> str:
    return os.urandom(6).hex()
