"""The face of an engine, and the flat fp32 ranges that EMA and checkpoints work on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from trainer.config import Precision

T = TypeVar("T")
DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
Reader = Callable[[str, str, int, int], Tensor]
"""(kind, tensor's name, start, count) → fp32 [count]: a range of a stored, flattened tensor."""


class Piece(NamedTuple):
    """A range of one named tensor, and where it lies in a flat buffer."""

    name: str
    shape: tuple[int, ...]  # of the whole tensor
    start: int  # in the flattened tensor
    length: int
    offset: int  # in the flat buffer


@dataclass(frozen=True)
class Flat:
    """A flat fp32 buffer of masters with Adam's moments; what no piece covers is padding."""

    pieces: tuple[Piece, ...]
    tensors: dict[str, Tensor]  # "master", "exp_avg", "exp_avg_sq": fp32 [N], live views

    @property
    def master(self) -> Tensor:
        """The masters, fp32 [N]."""
        return self.tensors["master"]


class StepStats(NamedTuple):
    """What one optimizer step gave, read from the device at once."""

    grad_norm: float  # before clipping, over the whole model
    applied: bool  # False: loss or gradient was not finite, and nothing changed
    sums: list[float]  # the caller's values, summed over ranks

    @property
    def overflowed(self) -> bool:
        """Whether the gradient alone was not finite: in fp16 often the loss scale's fault."""
        return not self.applied and all(map(math.isfinite, self.sums))


class Engine(Protocol):
    """Runs one model on this process's device, alone or with others.

    A step's gradient is the sum over all ranks and `backward` calls of the losses given, so the
    caller divides by the size of the global batch and the engine by nothing.
    """

    rank: int
    world_size: int
    device: torch.device
    module: nn.Module
    scale: float  # of losses before a backward pass, undone before clipping; 1 but in fp16

    def forward(self, compute: Callable[[], T]) -> T:
        """Run `compute`, which calls the module; every use of the module goes through here."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a scalar; called `micro_batches` times a step on every rank."""
        ...

    def step(self, rate: float, sums: Tensor) -> StepStats:
        """Clip, update and clear; `sums` fp32 [K] is summed over ranks and read with the norm."""
        ...

    def flats(self) -> list[Flat]:
        """What this rank owns; every element of the model is in one piece of one rank."""
        ...

    def restore(self, read: Reader, steps: int) -> None:
        """Take masters and moments of every kind from `read`, after `steps` applied steps."""
        ...

    def barrier(self) -> None:
        """Wait for all ranks."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value` (plain data), in rank order, on every rank."""
        ...

    def close(self) -> None:
        """Let go of the model's memory; the process group stays for the next engine."""
        ...


@dataclass(frozen=True)
class Setup:
    """What an engine is made for."""

    precision: Precision
    zero_stage: int
    micro_batches: Callable[[int], int]  # world size → backward calls a step
    offload: bool = False  # masters, moments and averages lie in the host's memory


def owned_range(count: int, rank: int, world_size: int) -> tuple[int, int]:
    """The (start, count) that `rank` owns of `count` elements held by all ranks alike."""
    share = math.ceil(count / world_size)
    start = min(rank * share, count)
    return start, min(start + share, count) - start


def whole_flat(name: str, shape: Sequence[int], tensors: dict[str, Tensor]) -> Flat:
    """A flat of one tensor."""
    flat = {kind: tensor.detach().view(-1) for kind, tensor in tensors.items()}
    piece = Piece(name, tuple(shape), 0, flat["master"].numel(), 0)
    return Flat((piece,), flat)


def owned_part(flat: Flat, rank: int, world_size: int) -> Flat | None:
    """The part of a one-tensor flat, held by all ranks alike, that `rank` owns."""
    (piece,) = flat.pieces
    start, count = owned_range(piece.length, rank, world_size)
    if count == 0:
        return None
    tensors = {kind: tensor.narrow(0, start, count) for kind, tensor in flat.tensors.items()}
    return Flat((piece._replace(start=start, length=count),), tensors)


def fill(flats: Sequence[Flat], read: Reader) -> None:
    """Copy stored ranges into flats."""
    for flat in flats:
        for kind, tensor in flat.tensors.items():
            for piece in flat.pieces:
                stored = read(kind, piece.name, piece.start, piece.length)
                tensor.narrow(0, piece.offset, piece.length).copy_(stored)


def cut_flat(flat: Tensor, named: Sequence[tuple[str, Sequence[int]]]) -> list[Piece]:
    """The pieces of tensors that lie in `flat` one after another."""
    pieces, offset = [], 0
    for name, shape in named:
        count = math.prod(shape)
        pieces.append(Piece(name, tuple(shape), 0, count, offset))
        offset += count
    if offset > flat.numel():
        raise ValueError(f"flat buffer: got {flat.numel()} elements, expected >= {offset}")
    return pieces
