"""Who looks at the pictures: a CLIP, and Inception v3 where its weights are at hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from base.errors import UserError, one_line
from trainer.builders import load_encoders
from trainer.models.clip import ImageEncoder, TextEncoder
from trainer.models.inception import Inception
from trainer.sampling.cascade import Cascade


class Seen(NamedTuple):
    """What the judges make of pictures, float32 on the CPU."""

    clip: Tensor  # CLIP's projections, of any length, [N, D]
    inception: Tensor | None = None  # features [N, 2048]
    logits: Tensor | None = None  # [N, 1008]


@dataclass(frozen=True)
class Judges:
    """A CLIP with both towers, and Inception or none, on one device."""

    device: torch.device
    text: TextEncoder
    image: ImageEncoder
    inception: Inception | None = None

    @torch.inference_mode()
    def look(self, pictures: Tensor) -> Seen:
        """At uint8 [B, 3, H, H]."""
        moved = pictures.to(self.device)
        clip = self.image.project(moved).cpu()
        if self.inception is None:
            return Seen(clip)
        return Seen(clip, *(part.cpu() for part in self.inception(moved)))

    def read(self, captions: list[str]) -> Tensor:
        """Embeddings of captions, unit length, float32 [B, D] on the CPU."""
        return self.text.space.directions(self.text.encode(captions).embedding).cpu()


def find_judges(cascade: Cascade, clip: str | None, inception: Path | None) -> Judges:
    """The cascade's own CLIP, or another one, named as a cascade names its own; Inception's file.

    Raises:
        UserError: one of them cannot be loaded.
    """
    device = cascade.device
    network = None if inception is None else load_inception(inception).to(device)
    text, image = cascade.text, cascade.image
    if clip is not None:
        try:
            text, image = load_encoders(clip)
        except UserError as error:
            raise UserError(f"--features: {error}") from error
    if image is None:
        raise UserError(
            f"{clip or cascade.config.clip}: reads captions alone and sees no pictures; "
            "name a CLIP with both halves with --features"
        )
    return Judges(device, text.to(device), image, network)


def load_inception(path: Path) -> Inception:
    """Inception v3 with the weights of a file that torch wrote; what it holds is not run.

    Raises:
        UserError: it is missing, no such file, or of another network.
    """
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError as error:
        raise UserError(f"--inception: {path}: no such file") from error
    except Exception as error:  # torch.load raises what it likes
        told = one_line(error)[:200]
        raise UserError(f"--inception: {path}: no file of torch's weights ({told})") from error
    if not isinstance(weights, dict) or not all(isinstance(t, Tensor) for t in weights.values()):
        raise UserError(f"--inception: {path}: got no state dict, expected tensors by name")
    try:
        return Inception(weights)
    except ValueError as error:
        expected = "expected the weights inception-2015-12-05"
        raise UserError(f"--inception: {path}: {error}; {expected}") from error
