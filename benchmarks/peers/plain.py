"""A training step of a plain torch loop as others have it."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

RATE, DECAY, CLIP = 1e-4, 0.01, 1.0
_TARGET = 0.5


def error(output: Tensor) -> Tensor:
    """A loss in which every output takes part."""
    loss: Tensor = (output.float() - _TARGET).square().mean()
    return loss


def plain_step(module: nn.Module, call: Callable[[], Tensor], bf16: bool) -> Callable[[], float]:
    """Forward pass (under autocast in bf16), backward pass, clipping, fused AdamW; the loss."""
    optimizer = torch.optim.AdamW(module.parameters(), RATE, weight_decay=DECAY, fused=True)

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = error(call())
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def timed(step: Callable[[], float]) -> Callable[[], tuple[float, float]]:
    """The loss, and the seconds of this process's processors: what else runs does not count."""

    def wrapped() -> tuple[float, float]:
        begun = time.process_time()
        loss = step()
        return loss, time.process_time() - begun

    return wrapped
