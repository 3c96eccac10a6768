"""The cascade: caption → z_i (prior) → small picture (decoder) → larger ones (upsamplers)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.builders import load_text_encoder
from trainer.config import Precision
from trainer.engine.open import hardware_precision
from trainer.engine.processes import local_device
from trainer.models.clip import TextEncoder, TextStates
from trainer.objectives.conditions import to_pixels
from trainer.rng import SampleRandom

from .config import CascadeConfig
from .drawing import decode, no_captions, sample_prior, upsample
from .parts import Part, load_part


@dataclass(frozen=True)
class Cascade:
    """A trained cascade. All methods take and give whole batches on `device`.

    Randomness comes from a `SampleRandom`: the picture of a (seed, position) is the same in any
    batch.
    """

    config: CascadeConfig
    device: torch.device
    text: TextEncoder
    prior: Part
    decoder: Part
    upsamplers: tuple[Part, ...]

    def __post_init__(self) -> None:
        reader = self.decoder.config.model.text  # a decoder's own
        if reader is not None:
            self.text.lengthen(reader.context_length)

    def captions(self, captions: Sequence[str]) -> TextStates:
        """Encode captions."""
        return self.text.encode(list(captions))

    def no_captions(self, count: int) -> TextStates:
        """The empty caption, `count` times."""
        return no_captions(self.text, count)

    def sample_prior(self, text: TextStates, random: SampleRandom) -> Tensor:
        """z_i of captions, unit length, float32 [B, D]: of several samples the nearest to z_t."""
        return sample_prior(self.prior, text, self.no_captions(len(text.embedding)), random)

    def decode(
        self,
        image_embedding: Tensor,
        text: TextStates,
        random: SampleRandom,
        keep_image: bool = True,
    ) -> Tensor:
        """The decoder's picture in [-1, 1], float32 [B, 3, S, S].

        image_embedding [B, D] of unit length; without `keep_image` it is dropped, as in training.
        """
        null = self.no_captions(len(image_embedding))
        return decode(self.decoder, image_embedding, text, null, random, keep_image)

    def upsample(self, picture: Tensor, random: SampleRandom) -> Tensor:
        """All upsamplers in order: [B, 3, S, S] → [B, 3, S', S'], in [-1, 1]."""
        for level, part in enumerate(self.upsamplers):
            picture = upsample(part, picture, random, f"upsampler.{level}")
        return picture

    def generate(self, captions: Sequence[str], seed: int, first: int = 0) -> Tensor:
        """One picture a caption, uint8 [B, 3, S', S'] on the CPU.

        `first` is the position of the first caption, so that a long list may come in batches.
        """
        random = self.random(seed, first, len(captions))
        text = self.captions(captions)
        picture = self.decode(self.sample_prior(text, random), text, random)
        return to_pixels(self.upsample(picture, random)).cpu()

    def random(self, seed: int, first: int, count: int) -> SampleRandom:
        """The draws of positions [first, first + count)."""
        return SampleRandom(seed, torch.arange(first, first + count, device=self.device))


def load_cascade(config: CascadeConfig, precision: Precision | None = None) -> Cascade:
    """Load a cascade onto this process's device.

    Raises:
        UserError: it names runs that are not there or do not fit.
    """
    device = local_device()
    chosen = precision or hardware_precision(device)
    return Cascade(
        config=config,
        device=device,
        text=load_text_encoder(config.clip).to(device),
        prior=load_part(config.prior, "prior", device, chosen),
        decoder=load_part(config.decoder, "decoder", device, chosen),
        upsamplers=tuple(
            load_part(item, "upsampler", device, chosen) for item in config.upsamplers
        ),
    )
