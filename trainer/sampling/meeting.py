"""Processes that make pictures or measure them together: they wait for each other, and one gathers.

Started by torchrun or srun; a process that is alone waits for nobody.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from trainer.engine.processes import (
    TIMEOUT,
    environment_rank,
    environment_world_size,
    group_environment,
    group_scope,
    is_joined,
)


@dataclass(frozen=True)
class Meeting:
    """This process among those that work together."""

    rank: int
    ranks: int

    @property
    def first(self) -> bool:
        """Whether this one writes what all have in common."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all are here."""
        if self.ranks > 1:
            dist.barrier()

    def share(self, value: Any) -> Any:
        """The first rank's value, on all."""
        if self.ranks == 1:
            return value
        shared = [value]
        dist.broadcast_object_list(shared)
        return shared[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value (on the CPU), in rank order, on the first; nothing on the others."""
        if self.ranks == 1:
            return [value]
        found: list[Any] | None = [None] * self.ranks if self.first else None
        dist.gather_object(value, found)
        return found or []


@contextmanager
def meeting() -> Iterator[Meeting]:
    """The processes that were started together. In a meeting already going on it is that one."""
    found = Meeting(environment_rank(), environment_world_size())
    if found.ranks == 1 or is_joined():
        yield found
        return
    with group_environment(), group_scope():
        dist.init_process_group("gloo", timeout=TIMEOUT)
        yield found
