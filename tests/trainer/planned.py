"""How many bytes a real run allocates: for tests of `unclip plan`, in one process and in several.

planned.py REPORT ZERO:PRECISION:OFFLOAD … under torchrun writes what was planned and allocated.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from stages import CONFIGS
from torch import Tensor

from trainer.batch import Batch, Needs
from trainer.config import AnyTrainConfig
from trainer.engine.open import open_engine
from trainer.engine.processes import environment_rank, environment_world_size, group_scope
from trainer.loop import build_parts
from trainer.planning.alive import Alive
from trainer.planning.plan import Hardware, make_plan
from trainer.session import Session
from trainer.stages import load_train_config

CPU = torch.device("cpu")
ALONE = Hardware(gpus=1, memory=10**9, mfu=0.5, peak=1.0, kind="cpu")
MICRO, COUNT = 4, 2  # samples of a process at once, and how often a step


def upsampler(*more: str) -> AnyTrainConfig:
    """Half a million parameters, whose activations weigh about as much as the weights."""
    size = ["model.unet.channels=32", "model.unet.blocks=1", "objective.degradation.kind=blur"]
    batch = MICRO * COUNT * environment_world_size()
    cut = [f"train.batch={batch}", f"train.micro_batch={MICRO}", "train.async_save=false"]
    return load_train_config(CONFIGS / "up64.yaml", [*size, *cut, *more])


def tensors() -> dict[int, Tensor]:
    """Every tensor that Python knows, by its storage."""
    gc.collect()
    found = [thing for thing in gc.get_objects() if isinstance(thing, Tensor)]
    return {tensor.untyped_storage()._cdata: tensor for tensor in found if not tensor.is_meta}


def random_pictures(needs: Needs) -> list[Batch]:
    """What an upsampler trains on in a step."""
    side = needs.crop
    assert side is not None
    return [
        Batch(
            torch.arange(MICRO) + MICRO * number,
            torch.randint(0, 255, (MICRO, 3, side, side), dtype=torch.uint8),
        )
        for number in range(COUNT)
    ]


def allocated(
    config: AnyTrainConfig, batches_of: Callable[[Needs], list[Batch]] = random_pictures
) -> int:
    """Bytes of a real run: what is there between steps, and the most that a step adds."""
    before = tensors()
    parts = build_parts(config, CPU)
    engine = open_engine(parts.model, config.optim, config.train, CPU)
    session = Session(config, parts.objective, engine, {}, epoch_size=64)
    batches = batches_of(parts.objective.needs)
    session.count(session.step(batches, 1e-3, [0.0]))  # what is made at the first step
    held = [tensor for key, tensor in tensors().items() if key not in before]
    with Alive(tensors().values()) as alive:
        session.count(session.step(batches, 1e-3, [0.0]))
    total = sum(tensor.untyped_storage().nbytes() for tensor in held) + alive.peak
    engine.close()
    return total


if __name__ == "__main__":
    torch.set_num_threads(1)
    report = {}
    with group_scope():
        for case in sys.argv[2:]:
            stage, precision, offload = case.split(":")
            config = upsampler(
                "train.engine=deepspeed",
                f"train.zero_stage={stage}",
                f"train.precision={precision}",
                f"train.offload={offload}",
            )
            plan = make_plan(config, replace(ALONE, gpus=environment_world_size()))
            (option,) = (option for option in plan.options if option.chosen)
            report[case] = [option.memory.total + option.host, allocated(config)]
    Path(f"{sys.argv[1]}.{environment_rank()}").write_text(json.dumps(report))
