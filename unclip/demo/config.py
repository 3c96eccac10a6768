"""What the demo is made of: counts, and how its cascade is sampled."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from base.config import Config, load_config
from base.errors import UserError

Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**64)]

RUNS = ("clip", "prior", "decoder", "up64", "up256")  # one config and one RUN each


class CorpusConfig(Config):
    """The synthetic scenes: how many of each split.

    crowd, sign: held-out scenes of kinds that are only reported on. Training shows one and two
    objects; what becomes of three and more, or of a written word, is told and not trained for.
    """

    train: Count
    heldout: Count
    unseen: Count
    crowd: CountOrNone = 0
    sign: CountOrNone = 0
    seed: int = 0


class Sampling(Config):
    """Steps of the samplers, guidance of prior and decoder, candidates of the prior."""

    prior_steps: Count
    prior_guidance: float = 1.0
    prior_candidates: Count = 2
    decoder_steps: Count
    decoder_guidance: float
    upsampler_steps: Count
    batch: Count = 32
    seed: Seed = 0


class ReportConfig(Config):
    """How many pictures are judged and shown."""

    single: Count
    pair: Count
    unseen: Count
    controls: Count  # captions of each control
    upsampled: Count  # true pictures that the upsamplers are measured on
    shown: Count = 64


class DemoConfig(Config):
    """demo.yaml."""

    corpus: CorpusConfig
    sampling: Sampling
    report: ReportConfig


def config_folder(given: Path | None) -> Path:
    """The folder with demo.yaml and one config a run.

    Raises:
        UserError: it lacks one of them.
    """
    folder = given or Path(__file__).resolve().parents[2] / "configs" / "tiny"
    for name in ("demo", *RUNS):
        if not (folder / f"{name}.yaml").is_file():
            raise UserError(f"{folder}: has no {name}.yaml, which the demo needs")
    return folder


def load_demo_config(folder: Path) -> DemoConfig:
    """demo.yaml of a folder of configs."""
    return load_config(folder / "demo.yaml", DemoConfig)
