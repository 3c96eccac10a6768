"""The stages that can be trained: for each, its config types and how its parts are built."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from base import yaml
from base.config import load_config
from base.errors import UserError
from trainer.builders import (
    build_ar_prior,
    build_clip,
    build_decoder,
    build_prior,
    build_upsampler,
    export_clip,
    fit_ar_prior,
)
from trainer.checkpoint.export import read_weights
from trainer.config import AnyTrainConfig, TrainConfig
from trainer.engine.base import Engine
from trainer.loader.catalogue import Catalogue
from trainer.models.ar_prior import ArPriorConfig
from trainer.models.clip import ClipConfig
from trainer.models.decoder import DecoderConfig
from trainer.models.prior import PriorConfig
from trainer.models.upsampler import UpsamplerConfig
from trainer.objectives.ar_prior import ArPriorObjectiveConfig
from trainer.objectives.base import Parts
from trainer.objectives.clip import ClipObjectiveConfig
from trainer.objectives.decoder import DecoderObjectiveConfig
from trainer.objectives.prior import PriorObjectiveConfig
from trainer.objectives.upsampler import UpsamplerObjectiveConfig
from trainer.record import CONFIG

__all__ = ["STAGES", "Parts", "Stage", "load_train_config", "load_weights"]


def _nothing_to_fit(config: AnyTrainConfig, engine: Engine, catalogue: Catalogue) -> None:
    """Most stages know of the data only what they learn."""


def _nothing(run: Path, config: AnyTrainConfig) -> None:
    """Most stages are done when their last checkpoint is."""


@dataclass(frozen=True)
class Stage:
    """One kind of run.

    `model` and `objective` are frozen dataclasses (or Configs) that become the sections of those
    names; `build` makes the parts, tensors of the objective on the given device, the model on the
    CPU; `fit` sets what the model takes from the data before the first step of a run that begins
    with random weights, on all ranks alike; `finish` runs on rank 0 whenever a run is found
    complete, so it must be idempotent.
    """

    model: type
    objective: type
    build: Callable[[AnyTrainConfig, torch.device], Parts]
    finish: Callable[[Path, AnyTrainConfig], None] = _nothing
    fit: Callable[[AnyTrainConfig, Engine, Catalogue], None] = _nothing_to_fit

    @property
    def config(self) -> type[AnyTrainConfig]:
        """The config type whose sections are this stage's."""
        kind: Any = TrainConfig
        typed: type[AnyTrainConfig] = kind[self.model, self.objective]
        return typed


STAGES: dict[str, Stage] = {
    "clip": Stage(ClipConfig, ClipObjectiveConfig, build_clip, export_clip),
    "prior": Stage(PriorConfig, PriorObjectiveConfig, build_prior),
    "ar_prior": Stage(ArPriorConfig, ArPriorObjectiveConfig, build_ar_prior, fit=fit_ar_prior),
    "decoder": Stage(DecoderConfig, DecoderObjectiveConfig, build_decoder),
    "upsampler": Stage(UpsamplerConfig, UpsamplerObjectiveConfig, build_upsampler),
}


def load_train_config(
    path: str | os.PathLike[str], overrides: Sequence[str] = ()
) -> AnyTrainConfig:
    """Read a run's config; its `stage` chooses the types of `model` and `objective`.

    Raises:
        UserError: one line with field, value, what was expected and the line of the file.
    """
    return load_config(path, STAGES[_stage_name(Path(path), overrides)].config, overrides)


def _stage_name(path: Path, overrides: Sequence[str]) -> str:
    named = [text.partition("=")[2] for text in overrides if text.partition("=")[0] == "stage"]
    name = named[-1].strip() if named else _stage_in(path)
    if name in STAGES:
        return name
    near = difflib.get_close_matches(str(name), STAGES, n=1)
    advice = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(STAGES)}"
    found = "missing" if name is None else f"got {name!r}"
    raise UserError(f"stage: {found}; {advice}; in {path.name}")


def _stage_in(path: Path) -> Any:
    try:
        data, _ = yaml.parse(path.read_text(encoding="utf-8"), path.name)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not YAML (it is not UTF-8 text)") from error
    return data.get("stage") if isinstance(data, dict) else None


def load_weights(
    run: Path, which: str = "ema", samples: int | None = None
) -> tuple[AnyTrainConfig, dict[str, Tensor]]:
    """A run's config and its model's state dict (fp32, CPU), for sampling.

    Raises:
        UserError: the folder is no RUN, or has no such checkpoint.
    """
    weights = read_weights(run, which, samples)
    return load_train_config(run / CONFIG), weights
