"""The diffusion stages at the smallest size, without data and CLIP, and a session of one."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import toy
from torch import Tensor

from trainer.batch import Batch
from trainer.engine.base import StepStats
from trainer.engine.open import open_engine
from trainer.models.clip import TextStates
from trainer.models.decoder import Decoder, DecoderConfig
from trainer.models.prior import DiffusionPrior, PriorConfig
from trainer.models.unet import UNetConfig
from trainer.models.upsampler import Upsampler, UpsamplerConfig
from trainer.objectives.base import Parts
from trainer.objectives.decoder import DecoderObjective, DecoderObjectiveConfig
from trainer.objectives.prior import PriorObjective, PriorObjectiveConfig
from trainer.objectives.upsampler import UpsamplerObjective, UpsamplerObjectiveConfig
from trainer.session import Session

WIDTH, LENGTH, SIDE, BATCH = 8, 6, 16, 12


class Captions:
    """In the place of a frozen CLIP's text tower, which knows its length on a CPU alone."""

    context_length = LENGTH

    def __init__(self, device: str) -> None:
        self.null_tokens = torch.zeros(LENGTH, dtype=torch.int64, device=device)

    def __call__(self, tokens: Tensor) -> TextStates:
        states = torch.ones(*tokens.shape, WIDTH, device=tokens.device)
        return TextStates(states, tokens >= 0, states[:, 0] / WIDTH**0.5, tokens)


def unet(**more: Any) -> UNetConfig:
    return UNetConfig(channels=8, multipliers=(1, 2), blocks=1, head_width=8, **more)


def prior(device: str) -> Parts:
    captions: Any = Captions(device)
    config = PriorConfig(WIDTH, WIDTH, LENGTH, layers=1, heads=1, head_width=8)
    return Parts(DiffusionPrior(config), PriorObjective(PriorObjectiveConfig(), captions))


def decoder(device: str) -> Parts:
    captions: Any = Captions(device)
    config = DecoderConfig(unet(attention_levels=(1,), context_width=8), WIDTH, WIDTH)
    return Parts(Decoder(config), DecoderObjective(DecoderObjectiveConfig(SIDE), captions))


def upsampler(device: str) -> Parts:
    objective = UpsamplerObjectiveConfig(SIDE, crop=None)
    return Parts(Upsampler(UpsamplerConfig(unet(in_channels=6))), UpsamplerObjective(objective))


def session_of(dataset: Path, out: Path, make: Any, device: str, **train: Any) -> Session:
    """A session of the same weights every time; `make` is one of the above."""
    torch.manual_seed(0)
    config, parts = toy.toy_config(dataset, out, train=train), make(device)
    engine = open_engine(parts.model, config.optim, config.train, torch.device(device))
    return Session(config, parts.objective, engine, {}, epoch_size=32)


def batches(count: int) -> list[Batch]:
    random = torch.Generator().manual_seed(0)
    return [
        Batch(
            torch.from_numpy(positions),
            torch.randint(0, 256, (len(positions), 3, SIDE, SIDE), generator=random).byte(),
            torch.randint(0, 99, (len(positions), LENGTH), generator=random),
            torch.randn(len(positions), WIDTH, generator=random).half(),
            torch.randn(len(positions), WIDTH, generator=random).half(),
        )
        for positions in np.array_split(np.arange(BATCH), count)
    ]


def take_step(session: Session) -> StepStats:
    """One step of three micro-batches."""
    stats = session.step(batches(3), 1e-3, [0.0, 0.0])
    session.count(stats)
    return stats
