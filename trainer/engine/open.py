"""Choice of the engine that a config asks for."""

from __future__ import annotations

import math

import torch
from torch import nn

from base.errors import UserError
from trainer.config import LoopConfig, OptimConfig, Precision
from trainer.engine.base import Engine, Setup
from trainer.engine.blocks import apply_plan
from trainer.engine.processes import environment_world_size


def open_engine(
    module: nn.Module, optim: OptimConfig, train: LoopConfig, device: torch.device
) -> Engine:
    """Put `module` under the engine that `train` names.

    Raises:
        UserError: the one-process engine was asked for in several processes, or the batch cannot
            be shared among them.
    """
    processes = environment_world_size()
    if train.batch < processes:
        raise UserError(f"train.batch: got {train.batch}, expected >= {processes}, one per process")
    setup = Setup(
        resolve_precision(train, device),
        train.zero_stage,
        lambda world_size: micro_batches(train, world_size),
        train.offload == "optimizer",
    )
    apply_plan(module, train, device)
    if train.engine == "deepspeed":
        from trainer.engine.deepspeed import DeepSpeedEngine

        return DeepSpeedEngine(module, optim, setup, device)
    if processes > 1:
        raise UserError(
            f"train.engine: local runs in one process, this is one of {processes}; use deepspeed"
        )
    from trainer.engine.local import LocalEngine

    return LocalEngine(module, optim, setup, device)


def resolve_precision(train: LoopConfig, device: torch.device) -> Precision:
    """bf16 where the hardware multiplies it, when the config leaves the choice."""
    return hardware_precision(device) if train.precision == "auto" else train.precision


def hardware_precision(device: torch.device) -> Precision:
    """bf16 where the hardware multiplies it, else fp32."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    flags = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return "bf16" if any(getattr(torch.cpu, flag, bool)() for flag in flags) else "fp32"


def micro_batches(train: LoopConfig, world_size: int) -> int:
    """Backward calls a step, the same on every rank."""
    largest = math.ceil(train.batch / world_size)
    wanted = math.ceil(largest / (train.micro_batch or largest))
    return min(wanted, train.batch // world_size)  # no rank has an empty micro-batch
