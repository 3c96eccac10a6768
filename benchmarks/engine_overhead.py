"""What the engines cost: samples a second of a plain torch loop, the local engine and ZeRO 1.

python -m benchmarks.engine_overhead

The same prior, batch and optimizer (fused AdamW, clipping); the three take turns, step by step, so
that what else the machine does hits all alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from trainer.config import OptimConfig
from trainer.engine.base import Engine, Setup
from trainer.engine.deepspeed import DeepSpeedEngine
from trainer.engine.local import LocalEngine
from trainer.engine.processes import group_scope, local_device
from trainer.models.prior import DiffusionPrior, PriorConfig

_PRIOR = PriorConfig(embedding_dim=256, text_width=256, layers=4, heads=4, head_width=64)
_BATCH, _ROUNDS = 16, 15
_OPTIM = OptimConfig(lr=1e-4, weight_decay=0.06)


def main() -> None:
    """Print samples a second of each, and its ratio to the plain loop."""
    device = local_device()
    inputs = _inputs(device)
    with group_scope():
        setup = Setup("fp32", 1, lambda world_size: 1)
        steps = {
            "plain torch": _plain(device, inputs),
            "local engine": _engine(LocalEngine(_prior(), _OPTIM, setup, device), inputs),
            "DeepSpeed, ZeRO 1": _engine(DeepSpeedEngine(_prior(), _OPTIM, setup, device), inputs),
        }
        seconds = _measure(steps)
    plain = seconds["plain torch"]
    elements = sum(parameter.numel() for parameter in _prior().parameters())
    print(
        f"{device.type}, prior of {elements:,} parameters, batch {_BATCH}, {_ROUNDS} rounds, fp32"
    )
    for name, times in seconds.items():
        ratio = statistics.median(ours / theirs for ours, theirs in zip(times, plain, strict=True))
        rate = _BATCH / statistics.median(times)
        print(f"{name:20}{rate:10.1f} samples/s{ratio:8.3f} x the plain loop's time")


def _prior() -> DiffusionPrior:
    torch.manual_seed(0)
    return DiffusionPrior(_PRIOR)


def _inputs(device: torch.device) -> tuple[Tensor, ...]:
    width, length = _PRIOR.text_width, _PRIOR.context_length
    embedding = torch.randn(_BATCH, _PRIOR.embedding_dim, device=device)
    states = torch.randn(_BATCH, length, width, device=device)
    mask = torch.ones(_BATCH, length, dtype=torch.bool, device=device)
    return embedding, torch.arange(_BATCH, device=device), states, mask, embedding


def _loss(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    loss: Tensor = (model(*inputs) - inputs[0]).square().mean()
    return loss


def _plain(device: torch.device, inputs: tuple[Tensor, ...]) -> Callable[[], float]:
    model = _prior().to(device)
    decayed = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [
        {"params": decayed, "weight_decay": _OPTIM.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=_OPTIM.lr, betas=_OPTIM.betas, fused=True)

    def step() -> float:
        loss = _loss(model, inputs)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), _OPTIM.clip_grad)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def _engine(engine: Engine, inputs: tuple[Tensor, ...]) -> Callable[[], float]:
    def step() -> float:
        loss = engine.forward(lambda: _loss(engine.module, inputs))
        engine.backward(loss)
        return engine.step(_OPTIM.lr, loss.detach().reshape(1)).sums[0]

    return step


def _measure(steps: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(_ROUNDS + 2):
        for name, step in steps.items():
            begun = time.perf_counter()
            step()
            if round_ >= 2:  # the first ones warm up
                seconds[name].append(time.perf_counter() - begun)
    return seconds


if __name__ == "__main__":
    main()
