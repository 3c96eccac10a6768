"""Pictures of captions in a folder, drawn batch by batch; what is there already stays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from base.config import fingerprint
from base.errors import UserError
from base.files import atomic_path, read_json, write_json
from base.lease import Lease
from base.progress import Progress
from base.stop import StopFlag

from .cascade import load_cascade
from .config import load_cascade_config, with_weights

RECORD = "captions.json"


def draw_captions(
    cascade: Path,
    captions: Sequence[str],
    seed: int,
    out: Path,
    batch: int,
    weights: str | None = None,
) -> list[Path]:
    """Draw one picture a caption into `out`; gives their paths in order.

    `weights` replace those that the cascade names, for every network but CLIP. Interrupted
    between two batches, the same call goes on where it was.

    Raises:
        UserError: the cascade cannot be loaded, or `out` holds pictures of another request.
        KeyboardInterrupt, Stopped: stopped on request.
    """
    config = load_cascade_config(cascade)
    if weights is not None:
        config = with_weights(config, weights)
    paths = [out / f"{position:06d}.png" for position in range(len(captions))]
    record = {"cascade": fingerprint(config), "seed": seed, "captions": list(captions)}
    with Lease(out), StopFlag() as stop:
        _require_ours(out / RECORD, record)
        missing = [position for position, path in enumerate(paths) if not path.is_file()]
        if not missing:
            return paths
        model = load_cascade(config)
        if not (out / RECORD).is_file():
            write_json(out / RECORD, record)
        done = len(paths) - len(missing)
        with Progress("pictures", len(paths), "pictures", initial=done) as bar:
            for first in range(missing[0], len(paths), batch):
                stop.raise_if_requested()
                some = captions[first : first + batch]
                drawn = model.generate(some, seed, first).permute(0, 2, 3, 1).numpy()
                for path, picture in zip(paths[first : first + batch], drawn, strict=True):
                    with atomic_path(path) as temporary:
                        Image.fromarray(picture).save(temporary, format="PNG")
                bar.advance(len(some))
    return paths


def _require_ours(path: Path, record: dict[str, object]) -> None:
    """The folder's record of its pictures is this request's, or there are none."""
    if path.is_file():
        if read_json(path) != record:
            raise UserError(
                f"{path.parent}: holds pictures of other captions, seed, weights or cascade; "
                "choose another --out"
            )
        return
    if path.parent.is_dir() and any(path.parent.glob("*.png")):
        raise UserError(f"{path.parent}: holds other pictures; choose another --out")
