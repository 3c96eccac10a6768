"""The folders of a run's checkpoints: their names, which one `latest` names, how they go."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from base.errors import UserError
from base.files import sync, write_atomic
from trainer.checkpoint.manifest import FOLDER, LATEST, MANIFEST, folder_name

_SAVING, _REMOVING, _DAMAGED = ".saving-", ".removing-", ".damaged-"
_LONGEST = 64  # bytes of `latest`


def checkpoint_folders(run: Path) -> list[Path]:
    """Folders with a checkpoint's name, oldest first; damage may have cost them their manifest."""
    return named_folders(run / FOLDER)


def named_folders(root: Path) -> list[Path]:
    """Folders of `root` with a checkpoint's name, oldest first."""
    if not root.is_dir():
        return []
    named = [path for path in root.iterdir() if _is_name(path.name)]
    return sorted(named, key=lambda path: int(path.name))


def complete_checkpoints(run: Path) -> list[Path]:
    """Folders with a manifest, oldest first."""
    return [path for path in checkpoint_folders(run) if (path / MANIFEST).is_file()]


def latest_checkpoint(run: Path) -> Path | None:
    """The folder that `latest` names, whether or not it is there; None without such a file.

    Raises:
        UserError: `latest` holds no checkpoint's name.
    """
    path = run / LATEST
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            name = file.read(_LONGEST + 1).decode("ascii", "replace").strip()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    if not _is_name(name):
        raise UserError(f"{path}: got {name[:20]!r}, expected a checkpoint's name")
    return run / FOLDER / name


def latest_fault(run: Path) -> str | None:
    """What is wrong with `latest` of a run that has checkpoints; None when it names one of them."""
    try:
        latest = latest_checkpoint(run)
    except UserError as error:
        return str(error)
    if latest is None:
        return f"{run / LATEST}: missing"
    return None if latest.is_dir() else f"{run / LATEST}: names {latest.name}, which is not there"


def point_latest(run: Path, folder: Path) -> None:
    """Let `latest` name a checkpoint that is whole."""
    write_atomic(run / LATEST, f"{folder.name}\n")


def working_folder(target: Path) -> Path:
    """Where a checkpoint is written before it has its name."""
    return target.with_name(f"{_SAVING}{target.name}")


def commit(working: Path, target: Path) -> None:
    """Give a checkpoint that was written its name."""
    if target.exists():  # a resume that could use it would not save it again: it is damaged
        remove(target)
    os.rename(working, target)
    sync(target.parent)


def remove(folder: Path) -> None:
    """Delete a checkpoint so that no moment shows a part of it under its name."""
    doomed = folder.with_name(f"{_REMOVING}{folder.name}")
    _delete(doomed)
    os.rename(folder, doomed)
    _delete(doomed)


def set_aside(folder: Path) -> None:
    """Take a damaged checkpoint's name from it; it goes when the next one is complete."""
    aside = folder.with_name(f"{_DAMAGED}{folder.name}")
    _delete(aside)
    os.rename(folder, aside)


def remove_leftovers(root: Path) -> None:
    """Delete what interrupted saves and removals left in it; nobody else may be writing."""
    for prefix in (_SAVING, _REMOVING):
        _remove_all(root, prefix)


def remove_damaged(run: Path) -> None:
    """Delete what was set aside."""
    _remove_all(run / FOLDER, _DAMAGED)


def _remove_all(root: Path, prefix: str) -> None:
    for folder in root.glob(f"{prefix}*"):
        _delete(folder)


def _delete(folder: Path) -> None:
    """Delete a folder if it is there; of a link to one elsewhere, the link alone."""
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def _is_name(name: str) -> bool:
    return name.isascii() and name.isdigit() and name == folder_name(int(name))
