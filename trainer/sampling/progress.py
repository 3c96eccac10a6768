"""Pictures of a run's progress: what its averaged weights make of the first training samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from base.files import atomic_path
from trainer.batch import Batch
from trainer.config import AnyTrainConfig
from trainer.diffusion.degradations import enlarge, shrink
from trainer.engine.open import hardware_precision
from trainer.loader.samples import SampleReader
from trainer.objectives.base import Objective
from trainer.objectives.conditions import to_pixels, to_signal
from trainer.rng import SampleRandom

from .config import DecoderPart, PartConfig
from .drawing import decode, no_captions, upsample
from .parts import Part, load_part

FOLDER = "samples"
_DECODER_STEPS, _UPSAMPLER_STEPS = 12, 4  # of a look at the progress, not of good pictures


class ProgressPictures:
    """Draws `samples/SAMPLES.png` of a run, one column a training sample, the same at every call.

    Rows: for a decoder what it makes of z_i and caption, then the truth; for an upsampler the
    bicubic enlargement, what it makes of the small picture, then the truth. Other stages draw none.
    """

    def __init__(self, config: AnyTrainConfig, objective: Objective, device: torch.device) -> None:
        self._config, self._device = config, device
        self._objective: Any = objective

    def draw(self, samples: int) -> Tensor | None:
        """Draw with the weights of the checkpoint at `samples`; the picture, uint8 [3, H, W]."""
        config = self._config
        if config.stage not in _LOOKS or config.train.pictures == 0:
            return None
        from torchvision.utils import make_grid  # slow to import

        settings, rows_of = _LOOKS[config.stage]
        settings = settings.model_copy(update={"run": str(config.out), "samples": samples})
        part = load_part(settings, config.stage, self._device, hardware_precision(self._device))
        rows = rows_of(part, self._objective, self._batch)
        grid = make_grid(torch.cat(rows).clamp(-1, 1), nrow=config.train.pictures, pad_value=1)
        picture = to_pixels(grid).cpu()
        with atomic_path(config.out / FOLDER / f"{samples:012d}.png") as temporary:
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(temporary, format="PNG")
        return picture

    @cached_property
    def _batch(self) -> Batch:
        config, needs = self._config, self._objective.needs
        reader = SampleReader(config.data, replace(needs, crop=None), config.seed)
        return reader.batch(np.arange(config.train.pictures)).to(self._device)


def _decoder_rows(part: Part, objective: Any, batch: Batch) -> list[Tensor]:
    assert batch.tokens is not None
    assert batch.image is not None
    text, null = objective.text(batch.tokens), no_captions(objective.text, len(batch))
    random = SampleRandom(0, batch.positions)
    made = decode(part, objective.embedding(batch), text, null, random)
    return [made, to_signal(batch.image)]


def _upsampler_rows(part: Part, objective: Any, batch: Batch) -> list[Tensor]:
    assert batch.image is not None
    true = to_signal(batch.image)
    factor = objective.config.factor
    small = shrink(true, factor)
    made = upsample(part, small, SampleRandom(0, batch.positions), "progress")
    return [enlarge(small, factor), made, true]


_LOOKS: dict[str, tuple[PartConfig, Callable[[Part, Any, Batch], list[Tensor]]]] = {
    "decoder": (DecoderPart(run="", steps=_DECODER_STEPS), _decoder_rows),
    "upsampler": (PartConfig(run="", steps=_UPSAMPLER_STEPS), _upsampler_rows),
}
