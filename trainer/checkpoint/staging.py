"""The host's copy of what a checkpoint takes, from which it is written while training goes on."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from base.errors import UserError
from base.memory import available_memory
from trainer.checkpoint.agree import Ranks
from trainer.checkpoint.write import Snapshot
from trainer.engine.base import Flat


class Staging:
    """A buffer on the host for all tensors of one rank's snapshots, made once and used again.

    Pinned where the tensors are on a GPU, so that the copy runs at the bus's speed.

    Raises:
        UserError: some host has less free memory than its ranks' buffers take; on all ranks alike.
    """

    def __init__(self, like: Snapshot, ranks: Ranks) -> None:
        tensors = [tensor for flat in like.flats for tensor in flat.tensors.values()]
        _require_memory([*tensors, *like.fixed.values()], ranks)
        self._flats = [
            Flat(flat.pieces, {kind: _host(tensor) for kind, tensor in flat.tensors.items()})
            for flat in like.flats
        ]
        self._fixed = {name: _host(tensor) for name, tensor in like.fixed.items()}

    def take(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot with tensors of our own; those of the one before are overwritten."""
        sources = [t for flat in snapshot.flats for t in flat.tensors.values()]
        targets = [t for flat in self._flats for t in flat.tensors.values()]
        sources += snapshot.fixed.values()
        targets += (self._fixed[name] for name in snapshot.fixed)
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source, non_blocking=True)
        if any(source.is_cuda for source in sources):
            torch.cuda.current_stream().synchronize()
        return replace(snapshot, flats=self._flats, fixed=self._fixed)


def _host(tensor: Tensor) -> Tensor:
    """Room for a tensor; written to, so that the system gives the memory now and not in a save."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda).zero_()


def _require_memory(tensors: Sequence[Tensor], ranks: Ranks) -> None:
    needed = sum(map(_room, tensors))
    found = ranks.gather((socket.gethostname(), needed, available_memory()))
    for host in {host for host, _, _ in found}:
        wanted = sum(size for name, size, _ in found if name == host)
        free = min(free for name, _, free in found if name == host)
        if wanted > free:
            raise UserError(
                f"train.async_save: needs {wanted / 1e9:.1f} GB of memory on {host} for copies of "
                f"what is saved, {free / 1e9:.1f} GB are free; set it to false to save without"
            )


def _room(tensor: Tensor) -> int:
    """Bytes of a tensor's copy; torch takes pinned memory in powers of two."""
    size = tensor.numel() * tensor.element_size()
    return 1 << (size - 1).bit_length() if tensor.is_cuda and size else size
