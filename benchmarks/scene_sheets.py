"""The two sheets of docs/scenes.md: `python -m benchmarks.scene_sheets docs/images`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from base.files import atomic_path
from data_pipeline.scenes import Split, render, scene
from data_pipeline.schema.scenes import USUAL_KINDS, Kind, Scene

_SHOWN, _SIDE, _GAP, _GREY = 8, 128, 4, 235
_USUAL: tuple[Split, ...] = ("train", "heldout", "unseen")
_MORE: tuple[tuple[Kind, Split], ...] = tuple(
    (kind, split) for kind in ("crowd", "sign") for split in ("train", "unseen")
)


def main() -> None:
    """Write scenes.png and scenes-more.png."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    usual = [_first(0, split, USUAL_KINDS) for split in _USUAL]
    rows = [(scenes, 256) for scenes in usual]
    _write(folder / "scenes.png", [*rows, (usual[0], 64), (usual[0], 16)])
    more = [(_first(5, split, (kind,)), 256) for kind, split in _MORE]
    _write(folder / "scenes-more.png", more)


def _first(seed: int, split: Split, kinds: Sequence[Kind]) -> list[Scene]:
    return [scene(seed, index, split, kinds)[0] for index in range(_SHOWN)]


def _write(path: Path, rows: Sequence[tuple[Sequence[Scene], int]]) -> None:
    """A row for each list of scenes, rendered at so many pixels and shown at equal size."""
    step = _SIDE + _GAP
    sheet = Image.new("RGB", (_SHOWN * step + _GAP, len(rows) * step + _GAP), (_GREY,) * 3)
    for y, (scenes, size) in enumerate(rows):
        how = Image.Resampling.BOX if size > _SIDE else Image.Resampling.NEAREST
        for x, drawn in enumerate(scenes):
            picture = Image.fromarray(np.asarray(render(drawn, size))).resize((_SIDE,) * 2, how)
            sheet.paste(picture, (_GAP + x * step, _GAP + y * step))
    with atomic_path(path) as writing:
        sheet.save(writing, format="png", optimize=True)


if __name__ == "__main__":
    main()
