"""What is drawn for the comparisons: the same captions and noise under many settings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from base.files import atomic_path
from base.progress import Progress
from trainer.engine.open import hardware_precision
from trainer.evaluation.pairs import Pairs
from trainer.models.clip import TextStates
from trainer.objectives.conditions import to_pixels
from trainer.rng import SampleRandom
from trainer.sampling.ar_prior import ArPart
from trainer.sampling.cascade import Cascade, load_cascade
from trainer.sampling.config import PriorPart, load_cascade_config
from trainer.sampling.drawing import decode, sample_prior, upsample
from trainer.sampling.parts import Part, load_part, load_prior

Source = Literal["prior", "ar_prior", "text", "true", "none"]
_BATCH = 32


@dataclass(frozen=True)
class Drawing:
    """One picture a caption: where the decoder's embedding comes from, guidance, and the noise.

    `source`: a prior's z_i; `text`: z_t in its place; `true`: the true picture's; `none`: dropped.
    """

    source: Source = "prior"
    guidance: float = 1.5
    prior_guidance: float = 1.0
    candidates: int = 2
    seed: int = 0
    decoder: str = "decoder"

    @property
    def name(self) -> str:
        """Of its file."""
        prior = f"{self.source}-{self.prior_guidance:g}-{self.candidates}"
        return f"{prior}-{self.decoder}-{self.guidance:g}-{self.seed}"


class Drawn(NamedTuple):
    """What was drawn of N captions."""

    z: Tensor  # float32 [N, D]: what the decoder was given
    small: Tensor  # float32 [N, 3, s, s]: the decoder's pictures, in [-1, 1]
    pictures: Tensor  # uint8 [N, 3, S, S]: after the first upsampler
    features: Tensor  # float32 [N, D]: what CLIP sees in them


class Studio:
    """The networks, and where what they drew is kept."""

    def __init__(self, demo: Path, out: Path, pairs: Pairs) -> None:
        self.out, self.pairs = out, pairs
        self.cascade: Cascade = load_cascade(load_cascade_config(demo))
        self._precision = hardware_precision(self.cascade.device)

    @property
    def usual(self) -> Drawing:
        """What the demo's own cascade does."""
        prior, decoder = self.cascade.config.prior, self.cascade.config.decoder
        return Drawing("prior", decoder.guidance, prior.guidance, prior.candidates)

    def draw(self, drawing: Drawing, count: int, bar: Progress | None = None) -> Drawn:
        """The first `count` captions; kept from an earlier call, of as many or more."""
        path = self.out / "drawn" / f"{drawing.name}-{count}.npz"
        if not path.is_file():
            parts = [
                self._batch(drawing, self.pairs.take(range(first, min(first + _BATCH, count))), bar)
                for first in range(0, count, _BATCH)
            ]
            _write(path, [torch.cat(part).numpy() for part in zip(*parts, strict=True)])
        return _read(path)

    def has(self, drawing: Drawing, count: int) -> bool:
        """Whether it was drawn already."""
        return (self.out / "drawn" / f"{drawing.name}-{count}.npz").is_file()

    def look(self, pictures: Tensor) -> Tensor:
        """What CLIP sees in uint8 pictures [N, 3, H, H]: float32 [N, D]."""
        parts = torch.split(pictures, _BATCH)
        return torch.cat([self.cascade.look(part).cpu() for part in parts])

    def upsampler(self, run: Path, level: int) -> Part:
        """Another upsampler, sampled as the demo's own of a level is."""
        settings = self.cascade.upsamplers[level].settings.model_copy(update={"run": str(run)})
        return load_part(settings, "upsampler", self.cascade.device, self._precision)

    def enlarged(self, part: Part, small: Tensor, seed: int, bar: Progress | None) -> Tensor:
        """What an upsampler makes of pictures in [-1, 1], [N, 3, S, S]: in [-1, 1]."""
        made = []
        for first in range(0, len(small), _BATCH):
            few = small[first : first + _BATCH].to(self.cascade.device)
            some = self.pairs.take(range(first, first + len(few)))
            random = some.random(seed, self.cascade.device)
            made.append(upsample(part, few, random, "upsampler").cpu())
            if bar is not None:
                bar.advance(len(few))
        return torch.cat(made)

    def embeddings(self, drawing: Drawing, pairs: Pairs, random: SampleRandom) -> Tensor:
        """What the decoder is given of each caption, [B, D]."""
        text = self.cascade.captions(pairs.captions)
        match drawing.source:
            case "text":
                return text.embedding
            case "true" | "none":
                return pairs.image_embedding.to(self.cascade.device)
            case "prior" | "ar_prior":
                return self._from_prior(drawing, text, random)

    def _batch(self, drawing: Drawing, pairs: Pairs, bar: Progress | None) -> Drawn:
        random = pairs.random(drawing.seed, self.cascade.device)
        text = self.cascade.captions(pairs.captions)
        z = self.embeddings(drawing, pairs, random)
        null = self.cascade.no_captions(len(pairs))
        part = self._decoder(drawing)
        small = decode(part, z, text, null, random, keep_image=drawing.source != "none")
        pictures = to_pixels(
            upsample(self.cascade.upsamplers[0], small, random, "upsampler.0")
        ).cpu()
        if bar is not None:
            bar.advance(len(pairs))
        return Drawn(z.cpu(), small.cpu(), pictures, self.look(pictures))

    def _from_prior(self, drawing: Drawing, text: TextStates, random: SampleRandom) -> Tensor:
        part = self.cascade.prior if drawing.source == "prior" else self._ar_prior
        asked = {"guidance": drawing.prior_guidance, "candidates": drawing.candidates}
        settings = part.settings.model_copy(update=asked)
        null = self.cascade.no_captions(len(text.embedding))
        assert isinstance(settings, PriorPart)
        return sample_prior(replace(part, settings=settings), text, null, random)

    def _decoder(self, drawing: Drawing) -> Part:
        part = self.cascade.decoder if drawing.decoder == "decoder" else self._text_decoder
        settings = part.settings.model_copy(update={"guidance": drawing.guidance})
        return replace(part, settings=settings)

    @cached_property
    def _ar_prior(self) -> Part | ArPart:
        settings = PriorPart(run=str(self.out / "ar_prior"))
        return load_prior(settings, self.cascade.device, self._precision)

    @cached_property
    def _text_decoder(self) -> Part:
        asked = {"run": str(self.out / "decoder_text")}
        settings = self.cascade.config.decoder.model_copy(update=asked)
        return load_part(settings, "decoder", self.cascade.device, self._precision)


def _write(path: Path, arrays: list[np.ndarray]) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, *arrays)


def _read(path: Path) -> Drawn:
    with np.load(path) as kept:
        return Drawn(*(torch.from_numpy(kept[f"arr_{place}"]) for place in range(4)))
