"""Where a DATASET's inputs lay: beside its plan and not in it, for no hash may know of places."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from base.errors import UserError
from base.files import read_json, write_json
from base.places import Place, place
from base.store_errors import shown
from data_pipeline.schema.dataset import PLACES_FILE
from data_pipeline.sources import Source


def note_places(root: Place, sources: Sequence[Source]) -> None:
    """Writes down where the sources lie by now, if that is not what is written there."""
    told = [source.path for source in sources]
    if _noted(root) != told:
        write_json(root / PLACES_FILE, told)


def find_inputs(root: Place, names: Sequence[str]) -> list[Place]:
    """The inputs that `root` was made of, by their names as they were typed.

    Each is looked for where it was, then from the working directory, then from the folder that
    holds `root`. An address is always itself.

    Raises:
        UserError: there is none; where it was looked for.
    """
    noted = _noted(root)
    if len(noted) != len(names):  # such as none, of a DATASET of an earlier version
        noted = list(names)
    return [_find(root, name, was) for name, was in zip(names, noted, strict=True)]


def _find(root: Place, name: str, was: str) -> Place:
    if "://" in name:
        return place(name)
    looked = list(dict.fromkeys(_candidates(root, name, was)))
    for candidate in looked:
        if candidate.exists():
            return candidate
    raise UserError(
        f"{name}: no such file or folder, but {shown(str(root))} was made of it; looked for "
        f"{', '.join(map(str, looked))}"
    )


def _candidates(root: Place, name: str, was: str) -> Iterator[Path]:
    yield Path(was).absolute()
    yield Path(name).absolute()
    if isinstance(root, Path):
        yield root.absolute().parent / name


def _noted(root: Place) -> list[str]:
    """Nothing where there is no such note, or a damaged one: names as typed may do without."""
    path = root / PLACES_FILE
    try:
        told = read_json(path) if path.is_file() else []
    except UserError:
        return []
    known = isinstance(told, list) and all(isinstance(item, str) for item in told)
    return told if known else []
