"""The one-process engine: flat fp32 masters, fused AdamW, no DeepSpeed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from trainer.config import OptimConfig
from trainer.engine.base import DTYPES, Flat, Reader, Setup, StepStats, cut_flat, fill
from trainer.engine.step import guard, read_stats
from trainer.optim import MOMENTS, Group, make_adamw, prepare_moments, set_rate, split_by_decay

T = TypeVar("T")


class LocalEngine:
    """Holds all weights in one process.

    Each group's parameters become views of one flat buffer, and so do their gradients, so that
    norm, update and average are a few large operations. In bf16 and fp16 the model computes with
    weights of that kind; masters and accumulated gradients stay fp32.
    """

    rank = 0
    world_size = 1

    def __init__(
        self, module: nn.Module, optim: OptimConfig, setup: Setup, device: torch.device
    ) -> None:
        self.device = device
        self.module = module.to(device)
        self.scale = 1.0
        self._clip = optim.clip_grad
        dtype = DTYPES[setup.precision]
        groups = split_by_decay(self.module, optim.no_decay)
        self._groups = [_FlatGroup(group, dtype) for group in groups]
        _cast_rest(self.module, dtype)
        self._optimizer = make_adamw(
            [(group.decays, [group.master]) for group in self._groups], optim
        )
        prepare_moments(self._optimizer, self._masters())

    def forward(self, compute: Callable[[], T]) -> T:
        """Run `compute`."""
        return compute()

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a scalar."""
        (loss * self.scale).backward()  # type: ignore[no-untyped-call]
        for group in self._groups:
            group.accumulate()

    def step(self, rate: float, sums: Tensor) -> StepStats:
        """Clip, update and clear, with one read of the device; a bad gradient changes nothing."""
        norms = [torch.linalg.vector_norm(group.gradient) for group in self._groups]
        norm = torch.linalg.vector_norm(torch.stack(norms)) / self.scale
        guard(self._optimizer, norm, sums, self._clip, self.scale)
        set_rate(self._optimizer, rate)
        self._optimizer.step()
        for group in self._groups:
            group.publish()
            group.gradient.zero_()
        return read_stats(norm, sums)

    def flats(self) -> list[Flat]:
        """One flat per group."""
        return [
            Flat(
                tuple(group.pieces),
                {
                    "master": group.master.detach(),
                    **{kind: self._optimizer.state[group.master][kind] for kind in MOMENTS},
                },
            )
            for group in self._groups
        ]

    def restore(self, read: Reader, steps: int) -> None:
        """Take masters and moments from `read`."""
        prepare_moments(self._optimizer, self._masters(), steps)
        fill(self.flats(), read)
        for group in self._groups:
            group.publish()

    def _masters(self) -> list[Tensor]:
        return [group.master for group in self._groups]

    def barrier(self) -> None:
        """Nobody to wait for."""

    def gather(self, value: Any) -> list[Any]:
        """The only rank's value."""
        return [value]

    def close(self) -> None:
        """Nothing outlives the object."""


class _FlatGroup:
    """Parameters of one group in flat buffers: masters, gradients and, but in fp32, the weights."""

    def __init__(self, group: Group, dtype: torch.dtype) -> None:
        self.decays = group.decays
        parameters = [parameter for _, parameter in group.named]
        flat = torch.cat([p.detach().reshape(-1).float() for p in parameters])
        self.master = nn.Parameter(flat)
        self.pieces = cut_flat(flat, [(name, p.shape) for name, p in group.named])
        self.gradient = torch.zeros_like(flat)
        self.master.grad = self.gradient
        self._low = flat if dtype == flat.dtype else flat.to(dtype)
        self._low_gradient = (
            self.gradient if dtype == flat.dtype else torch.zeros_like(flat, dtype=dtype)
        )
        _point_into(parameters, self._low, self._low_gradient)

    def accumulate(self) -> None:
        """Move low gradients of one micro-batch to the fp32 sum; fp32 ones are there already."""
        if self._low_gradient is not self.gradient:
            self.gradient.add_(self._low_gradient)
            self._low_gradient.zero_()

    def publish(self) -> None:
        """Bring the weights that the model computes with up to date with the masters."""
        if self._low.dtype != self.master.dtype:
            self._low.copy_(self.master.detach())


def _point_into(parameters: Sequence[nn.Parameter], flat: Tensor, gradients: Tensor) -> None:
    """Make parameters and their gradients views of flat buffers."""
    offset = 0
    for parameter in parameters:
        count, shape = parameter.numel(), parameter.shape
        parameter.data = flat.narrow(0, offset, count).view(shape)
        parameter.grad = gradients.narrow(0, offset, count).view(shape)
        offset += count


def _cast_rest(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast untrained parameters and floating buffers, as DeepSpeed does: those that a module lets
    be cast. Trained ones are of this kind already, and stay where they are."""
    if dtype != torch.float32:
        module.to(dtype)
