"""AdamW over fp32 masters, and the learning rate as a function of samples seen."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from base.errors import UserError
from trainer.config import OptimConfig

MOMENTS = ("exp_avg", "exp_avg_sq")


class Group(NamedTuple):
    """Trained parameters that share an optimizer setting."""

    decays: bool
    named: list[tuple[str, nn.Parameter]]


def learning_rate(config: OptimConfig, samples: int, total: int) -> float:
    """The rate of the step after which a run of `total` will have seen `samples`.

    Linear from 0 over `warmup`; then constant, or half a cosine down to `final` times the rate.
    """
    if samples < config.warmup:
        return config.lr * samples / config.warmup
    if config.schedule == "constant":
        return config.lr
    done = min((samples - config.warmup) / max(total - config.warmup, 1), 1.0)
    share = 0.5 * (1 + math.cos(math.pi * done))
    return config.lr * (config.final + (1 - config.final) * share)


def split_by_decay(model: nn.Module, no_decay: Sequence[str] = ()) -> list[Group]:
    """Trained parameters in two groups: those that decay and the others.

    Whatever has two dimensions or more decays (matrices, kernels, tables of embeddings and of
    positions, as in CLIP's training), unless a pattern of `no_decay` matches its name. The groups
    and their order do not depend on the engine; an empty group is left out.

    Raises:
        UserError: a pattern matches no such name.
    """
    trained = [pair for pair in model.named_parameters() if pair[1].requires_grad]
    decaying = {name for name, parameter in trained if parameter.ndim >= 2}
    for pattern in no_decay:
        if not fnmatch.filter(decaying, pattern):
            raise UserError(
                f"optim.no_decay: got {pattern!r}, which matches no tensor that would decay; "
                f"there are {', '.join(sorted(decaying)[:3])}, ..."
            )
    spared = {name for pattern in no_decay for name in fnmatch.filter(decaying, pattern)}
    decayed = Group(True, [pair for pair in trained if pair[0] in decaying - spared])
    others = Group(False, [pair for pair in trained if pair[0] not in decaying - spared])
    return [group for group in (decayed, others) if group.named]


def make_adamw(
    groups: Sequence[tuple[bool, Sequence[Tensor]]], config: OptimConfig
) -> torch.optim.AdamW:
    """Fused AdamW over (decays, tensors) groups; its rate is set at every step."""
    options = [
        {"params": list(tensors), "weight_decay": config.weight_decay if decays else 0.0}
        for decays, tensors in groups
    ]
    return torch.optim.AdamW(
        options, lr=0.0, betas=config.betas, eps=config.eps, weight_decay=0.0, fused=True
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def prepare_moments(
    optimizer: torch.optim.AdamW, masters: Iterable[Tensor], steps: int = 0
) -> None:
    """Make Adam's state before the first step, so that it can be filled from a checkpoint."""
    for master in masters:
        state = optimizer.state[master]
        if "exp_avg" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=master.device)
            for moment in MOMENTS:
                state[moment] = torch.zeros_like(master, requires_grad=False)
        state["step"].fill_(steps)
