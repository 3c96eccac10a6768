"""`unclip plan`: what a run takes on a number of GPUs, and whether it fits them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from base.errors import UserError
from trainer.config import AnyTrainConfig, Precision
from trainer.engine.blocks import apply_plan
from trainer.engine.open import hardware_precision, micro_batches
from trainer.planning.memory import (
    ENGINES,
    EngineName,
    Memory,
    Model,
    host_bytes,
    memory_of,
)
from trainer.planning.outline import (
    META,
    Kind,
    activation_bytes,
    flops_per_sample,
    outline,
    text_tower,
)
from trainer.planning.peaks import ASSUMED, peak_tflops

HEADROOM = 0.08  # of a GPU's memory, for its driver, the communication library and fragments
_DAY = 86_400  # seconds


@dataclass(frozen=True)
class Hardware:
    """What the run is planned for."""

    gpus: int
    memory: int  # bytes of each
    mfu: float  # share of the peak that the model's arithmetic reaches
    peak: float | None  # TFLOP/s of each; None: an H100's
    kind: Kind = "cuda"


@dataclass(frozen=True)
class Option:
    """One engine's memory on each GPU."""

    engine: EngineName
    memory: Memory
    host: int  # bytes of the host's memory for each GPU
    fits: bool
    chosen: bool  # by the config


@dataclass(frozen=True)
class Plan:
    """What `unclip plan` prints."""

    stage: str
    precision: Precision
    parameters: int  # trained
    frozen: int  # parameters of the text tower's CLIP
    micro_batch: int  # samples of a GPU at once
    micro_batches: int  # a step
    flops: int  # of a sample, forward and backward
    days: float
    hardware: Hardware
    options: tuple[Option, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data; bytes, and their sum beside the parts."""
        options = [
            {**asdict(o), "memory": {**asdict(o.memory), "total": o.memory.total}}
            for o in self.options
        ]
        return {**asdict(self), "options": options}


def make_plan(config: AnyTrainConfig, hardware: Hardware) -> Plan:
    """Plan a run without reading its data or allocating its weights.

    Raises:
        UserError: the batch cannot be shared among so many GPUs, or the config does not hold.
    """
    gpus, train = hardware.gpus, config.train
    if train.batch < gpus:
        raise UserError(f"train.batch: got {train.batch}, expected >= {gpus}, one per GPU")
    precision = _precision(config, hardware.kind)
    count = micro_batches(train, gpus)
    micro = math.ceil(math.ceil(train.batch / gpus) / count)
    parts = outline(config, precision)
    flops = flops_per_sample(config, parts)
    apply_plan(parts.model, train.model_copy(update={"compile": False}), META)
    tower = text_tower(parts)
    frozen = [] if tower is None else [*tower.parameters(), *tower.buffers()]
    model = Model(
        trained=sum(p.numel() for p in parts.model.parameters() if p.requires_grad),
        fixed=sum(t.numel() * t.element_size() for t in frozen),
        precision=precision,
        activations=activation_bytes(config, parts, micro, hardware.kind),
        averages=1 + len(config.ema.powers),
        offload=train.offload == "optimizer",
        accumulates=count > 1,
        staged=train.async_save,
        snapshots=0 if config.ema.snapshot_every is None else len(config.ema.powers),
    )
    peak = hardware.peak or peak_tflops(ASSUMED, precision)
    assert peak is not None
    seconds = train.samples * flops / (gpus * peak * 1e12 * hardware.mfu)
    return Plan(
        stage=config.stage,
        precision=precision,
        parameters=model.trained,
        frozen=sum(t.numel() for t in frozen),
        micro_batch=micro,
        micro_batches=count,
        flops=flops,
        days=seconds / _DAY,
        hardware=hardware,
        options=tuple(_options(config, model, hardware)),
    )


def _options(config: AnyTrainConfig, model: Model, hardware: Hardware) -> list[Option]:
    train = config.train
    chosen = "local" if train.engine == "local" else f"zero {train.zero_stage}"
    options = []
    for engine in ENGINES:
        if engine == "local" and hardware.gpus > 1:
            continue
        memory = memory_of(engine, model, hardware.gpus)
        host = host_bytes(engine, model, hardware.gpus)
        fits = memory.total <= hardware.memory * (1 - HEADROOM)
        options.append(Option(engine, memory, host, fits, engine == chosen))
    return options


def _precision(config: AnyTrainConfig, kind: Kind) -> Precision:
    """What `auto` will be: every GPU that is planned for multiplies bf16."""
    asked = config.train.precision
    if asked != "auto":
        return asked
    return "bf16" if kind == "cuda" else hardware_precision(torch.device("cpu"))
