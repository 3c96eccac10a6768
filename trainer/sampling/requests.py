"""Pictures in a folder, drawn batch by batch; what is there already stays.

Under torchrun or srun the batches are dealt out among the processes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin
from torch import Tensor

from base.errors import UserError
from base.files import atomic_path, read_json, write_json
from base.lease import Lease
from base.progress import Progress
from base.stop import StopFlag
from trainer.engine.processes import environment_rank

from .cascade import Cascade, load_cascade
from .checkpoints import at_checkpoints
from .config import CascadeConfig, load_cascade_config, with_weights
from .meeting import meeting
from .sheet import caption_sheet, save_image

RECORD = "pictures.json"
SHEET = "sheet.png"
TEXT = "unclip"  # of a PNG: what made it, as JSON
_ON_A_SHEET = 256  # pictures, at most


class Drawn(NamedTuple):
    """Pictures, and what is to be told of each beside the request."""

    pixels: Tensor  # uint8 [B, 3, H, W], on the CPU
    notes: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Request:
    """Pictures that are asked for: `about` tells what each shows, `draw` makes those at positions.

    `draw` must give the same picture for a position whatever others are drawn with it.
    """

    use: str
    seed: int
    about: Sequence[Mapping[str, Any]]
    draw: Callable[[Cascade, Sequence[int]], Drawn]
    settings: Mapping[str, Any] = field(default_factory=dict)
    columns: int = 8  # of the sheet

    def captions(self) -> list[str]:
        """What stands below each picture on the sheet."""
        return [str(item.get("caption", "")) for item in self.about]


def fulfil(
    request: Request,
    cascade: Path,
    out: Path,
    batch: int,
    weights: str | None = None,
    overrides: Sequence[str] = (),
) -> list[Path]:
    """Draw a request's pictures into `out`, and a sheet of them; gives their paths in order.

    `overrides` such as "decoder.guidance=2" come after the cascade's file; `weights` replace those
    that it names, for every network but CLIP.

    Raises:
        UserError, KeyboardInterrupt, Stopped: as `draw_missing` does.
    """
    config = load_cascade_config(cascade, overrides)
    if weights is not None:
        config = with_weights(config, weights)
    return draw_missing(request, config, out, batch, load_cascade)


def draw_missing(
    request: Request,
    config: CascadeConfig,
    out: Path,
    batch: int,
    load: Callable[[CascadeConfig], Cascade],
) -> list[Path]:
    """Draw those of a request's pictures that are not in `out`; gives the paths of all, in order.

    `load` gives the cascade of `config` at the checkpoints that there are now, and is not called
    where there is nothing to draw. Interrupted, the same call goes on with what is missing.

    Raises:
        UserError: the cascade cannot be loaded, or `out` holds pictures of another request.
        KeyboardInterrupt, Stopped: stopped on request.
    """
    paths = [out / f"{position:06d}.png" for position in range(len(request.about))]
    with ExitStack() as stack:
        if environment_rank() == 0:
            stack.enter_context(Lease(out))
        stop = stack.enter_context(StopFlag())
        met = stack.enter_context(meeting())
        config = met.share(at_checkpoints(config))
        settings = _settings(request, config)
        record = {**settings, "pictures": [dict(item) for item in request.about]}
        _require_ours(out / RECORD, record)
        missing = [position for position, path in enumerate(paths) if not path.is_file()]
        met.wait()  # before anybody draws, all have seen the same
        batches = [missing[start : start + batch] for start in range(0, len(missing), batch)]
        own = batches[met.rank :: met.ranks]

        def claim() -> None:
            # Not before a batch is drawn: mistakes that show in drawing leave nothing behind.
            if met.first:
                write_json(out / RECORD, record)
            met.wait()

        if own:
            model = load(config)
            mine = sum(map(len, own))
            done = len(paths) - len(missing) if met.ranks == 1 else 0
            with (
                Progress("pictures", done + mine, "pictures", initial=done) as bar,
                _at_each_step(model, bar, stop),
            ):
                for number, some in enumerate(own):
                    drawn = request.draw(model, some)
                    if number == 0:
                        claim()
                    _save(drawn, some, paths, request, settings)
                    bar.advance(len(some))
        elif missing:
            claim()
        met.wait()
        if met.first and len(paths) > 1 and not (out / SHEET).is_file():
            _save_sheet(paths[:_ON_A_SHEET], request, out / SHEET)
    return paths


def _settings(request: Request, config: CascadeConfig) -> dict[str, Any]:
    """What all pictures of a request have in common."""
    cascade = config.model_dump(mode="json")
    return {"use": request.use, "cascade": cascade, "seed": request.seed, **request.settings}


@contextmanager
def _at_each_step(model: Cascade, bar: Progress, stop: StopFlag) -> Iterator[None]:
    """End where a stop was asked for; else show which network is at work, and how often it was
    asked since another one was."""
    name, times = "", 0

    def asked(who: str) -> None:
        nonlocal name, times
        stop.raise_if_requested()
        name, times = who, times + 1 if who == name else 1
        bar.advance(0, at=f"{who}, step {times}")

    handles = [
        module.register_forward_pre_hook(lambda *_, who=who: asked(who))
        for who, module in model.steps().items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _save(
    drawn: Drawn,
    positions: Sequence[int],
    paths: Sequence[Path],
    request: Request,
    settings: Mapping[str, Any],
) -> None:
    pixels = drawn.pixels.permute(0, 2, 3, 1).numpy()
    notes = drawn.notes or [{}] * len(positions)
    for position, picture, note in zip(positions, pixels, notes, strict=True):
        about = {**settings, "position": position}
        text = PngImagePlugin.PngInfo()
        text.add_itxt(TEXT, json.dumps({**about, **request.about[position], **note}))
        with atomic_path(paths[position]) as temporary:
            Image.fromarray(picture).save(temporary, format="PNG", pnginfo=text)


def read_settings(path: Path) -> dict[str, Any]:
    """What made a picture of ours.

    Raises:
        UserError: it is none of ours.
    """
    with Image.open(path) as image:
        told = getattr(image, "text", {}).get(TEXT)
    if told is None:
        raise UserError(f"{path}: no picture of ours, it tells no settings")
    found: dict[str, Any] = json.loads(told)
    return found


def _save_sheet(paths: Sequence[Path], request: Request, sheet: Path) -> None:
    pictures = [np.asarray(Image.open(path)) for path in paths]
    columns = min(request.columns, len(paths))
    save_image(caption_sheet(pictures, request.captions()[: len(paths)], columns), sheet)


def _require_ours(path: Path, record: dict[str, object]) -> None:
    """The folder's record of its pictures is this request's, or there are none."""
    if path.is_file():
        if read_json(path) != json.loads(json.dumps(record)):
            raise UserError(
                f"{path.parent}: holds pictures of another request, seed, checkpoint, weights or "
                "cascade; choose another --out"
            )
        return
    if path.parent.is_dir() and any(path.parent.glob("*.png")):
        raise UserError(f"{path.parent}: holds other pictures; choose another --out")
