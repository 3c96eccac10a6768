"""A cascade of another project as it is about to become RUNs of ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from trainer.sampling.config import DecoderPart, PriorPart, UpsamplerPart


@dataclass(frozen=True)
class Network:
    """One network: what its RUN will be of, and how its weights are had.

    `read` gives them as ours, in whatever precision they are stored; nothing is read before.
    """

    name: str  # of the RUN
    stage: str
    model: Any
    objective: Any
    files: tuple[Path, ...]
    read: Callable[[], Mapping[str, Tensor]]


@dataclass(frozen=True)
class ForeignClip:
    """Its CLIP: open_clip's `model_cfg`, the files, and how open_clip's state dict is had."""

    config: Mapping[str, Any]
    files: tuple[Path, ...]
    read: Callable[[], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Source:
    """The whole: parts of cascade.yaml name the networks as their RUNs."""

    networks: tuple[Network, ...]
    clip: ForeignClip | None  # None: it is to be named beside
    prior: PriorPart | None
    decoder: DecoderPart
    upsampler: UpsamplerPart


# What Karlo's authors and diffusers' pipeline sample with.
PRIOR_STEPS, PRIOR_GUIDANCE, PRIOR_LIMIT = 25, 4.0, 5.0
DECODER_STEPS, DECODER_GUIDANCE = 25, 8.0
UPSAMPLER_STEPS = 7


def prior_part(limit: float | None) -> PriorPart:
    """Karlo's prior as it is sampled: one sample a caption."""
    return PriorPart(
        run="prior",
        sampler="ancestral",
        steps=PRIOR_STEPS,
        guidance=PRIOR_GUIDANCE,
        candidates=1,
        limit=limit,
    )


def decoder_part() -> DecoderPart:
    """Karlo's decoder as it is sampled."""
    return DecoderPart(
        run="decoder", sampler="ancestral", steps=DECODER_STEPS, guidance=DECODER_GUIDANCE
    )


def upsampler_part() -> UpsamplerPart:
    """Karlo's super-resolution as it is sampled: the last step by a network of its own."""
    return UpsamplerPart.model_validate(
        {
            "run": "up256",
            "sampler": "ancestral",
            "steps": UPSAMPLER_STEPS,
            "last_step": {"run": "up256_last"},
        }
    )
