"""The scores that Analytic-DPM needs: measured over a run's data, kept in the RUN."""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from base.errors import UserError
from base.files import read_json, write_json
from base.progress import Progress
from base.stop import StopFlag
from trainer.checkpoint.export import read_weights
from trainer.checkpoint.read import resolve_checkpoint
from trainer.config import AnyTrainConfig
from trainer.diffusion.denoiser import denoiser
from trainer.diffusion.process import Diffusion
from trainer.diffusion.schedules import spaced_timesteps
from trainer.diffusion.scores import ScoreNorms
from trainer.engine.base import DTYPES
from trainer.engine.open import hardware_precision
from trainer.engine.processes import local_device
from trainer.loader.samples import SampleReader
from trainer.objectives.denoising import Denoising
from trainer.rng import SampleRandom
from trainer.stages import STAGES, load_train_config

from .config import PartConfig

RECORD = Path("exports") / "analytic.json"
_BATCH = 64


@dataclasses.dataclass(frozen=True)
class Scores:
    """Γ, the mean square of a network's scores, at some timesteps."""

    checkpoint: str
    weights: str
    samples: int
    gamma: Mapping[int, float]

    def at(self, timesteps: Sequence[int], diffusion: Diffusion) -> dict[int, float]:
        """Γ of any timesteps: between two known ones (1 - ᾱ) Γ, the mean of ε², is on a line."""
        known = sorted(self.gamma)

        def noise(t: int) -> float:
            return 1 - float(diffusion.alphas[t])

        def mean_of(t: int) -> float:
            after = min(max(bisect_left(known, t), 1), len(known) - 1)
            low, high = known[after - 1], known[after]
            means = [noise(end) * self.gamma[end] for end in (low, high)]
            share = min(max((t - low) / (high - low), 0.0), 1.0)
            return means[0] + share * (means[1] - means[0])

        return {t: mean_of(t) / noise(t) for t in timesteps}


def read_scores(settings: PartConfig, stage: str) -> Scores:
    """The scores of the weights that a part of a cascade is drawn with.

    Raises:
        UserError: they were not measured, or those of other weights were; names the command.
    """
    run = Path(settings.run)
    path, checkpoint = run / RECORD, resolve_checkpoint(run, settings.samples).folder.name
    command = f"`unclip checkpoint analytic {run}"
    command += "" if settings.weights == "ema" else f" --weights {settings.weights}"
    command += "`" if settings.samples is None else f" --at {settings.samples}`"
    if not path.is_file():
        raise UserError(f"{stage}.sampler: analytic needs {path}, which {command} makes")
    found = _parsed(read_json(path), path)
    if (found.checkpoint, found.weights) != (checkpoint, settings.weights):
        raise UserError(
            f"{stage}.sampler: {path} is of {found.weights} at {found.checkpoint}, expected "
            f"{settings.weights} at {checkpoint}; {command} makes it"
        )
    return found


def _parsed(data: Any, path: Path) -> Scores:
    try:
        gamma = {int(t): float(value) for t, value in data.pop("gamma").items()}
        found = Scores(**data, gamma=gamma)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not what `unclip checkpoint analytic` writes") from error
    if len(gamma) < 2 or min(gamma) < 0:
        raise UserError(f"{path}: got scores of {len(gamma)} timesteps, expected 2 or more")
    return found


def measure_scores(
    run: Path, samples: int, steps: int, weights: str = "ema", at: int | None = None
) -> Scores:
    """Measure a RUN's scores on its first training samples, write them into it, and give them.

    All conditions are kept, and nothing is guided. `steps`: at how many timesteps, evenly spaced.

    Raises:
        UserError: no such run, checkpoint or weights; a stage that diffuses nothing.
        KeyboardInterrupt, Stopped: stopped on request.
    """
    config = _without_drops(load_train_config(run / "config.yaml"))
    checkpoint, device = resolve_checkpoint(run, at), local_device()
    parts = STAGES[config.stage].build(config, device)
    parts.model.load_state_dict(read_weights(run, weights, at))
    dtype = DTYPES[hardware_precision(device)]
    model = parts.model.to(device=device, dtype=dtype).eval().requires_grad_(False)
    objective = parts.objective
    assert isinstance(objective, Denoising)
    diffusion = objective.diffusion
    timesteps = spaced_timesteps(diffusion.steps, min(steps, diffusion.steps))
    norms = ScoreNorms(diffusion, timesteps)
    reader = SampleReader(config.data, objective.needs, config.seed)
    with StopFlag() as stop, Progress("scores", samples, "samples") as bar, torch.inference_mode():
        for first in range(0, samples, _BATCH):
            stop.raise_if_requested()
            batch = reader.batch(np.arange(first, min(first + _BATCH, samples))).to(device)
            random = SampleRandom(config.seed, batch.positions)
            x0, network = objective.given(model, batch, random)
            norms.add(denoiser(diffusion, network), x0, partial(_noise, random, x0))
            bar.advance(len(batch))
    scores = Scores(checkpoint.folder.name, weights, samples, norms.gamma())
    write_json(run / RECORD, dataclasses.asdict(scores))
    return scores


def _noise(random: SampleRandom, like: Tensor, t: int) -> Tensor:
    return random.normal(f"analytic.{t}", *like.shape[1:])


def _without_drops(config: AnyTrainConfig) -> AnyTrainConfig:
    """The config of a run whose conditions are never dropped."""
    if not hasattr(config.objective, "diffusion"):
        raise UserError(f"{config.out}: a run of stage {config.stage}, which diffuses nothing")
    names = [field.name for field in dataclasses.fields(config.objective)]
    kept: dict[str, Any] = {name: 0.0 for name in names if name.startswith("drop_")}
    return config.model_copy(update={"objective": dataclasses.replace(config.objective, **kept)})
