"""Whether a cluster has room for actors, and what is said while they wait for it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from base.errors import UserError
from data_pipeline.cluster import can_grow

_FIRST_SECONDS = 5.0  # of waiting, which are not worth a word
_NEXT_SECONDS = 60.0


class Waiting:
    """Says what is waited for: after a few seconds, and then at a slow pace."""

    def __init__(self, ray: Any, who: str, needs: Mapping[str, float]) -> None:
        self._ray, self._who, self._needs = ray, who, needs
        self._next = time.monotonic() + _FIRST_SECONDS

    def still(self, placed: int) -> None:
        """Called while it is waited; `placed` of the actors have their place and load."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _NEXT_SECONDS
        if placed:
            print(f"{self._who}: still loading", file=sys.stderr)
            return
        told = f"waiting for a place: {_needs_and_has(self._ray, self._needs)}"
        if not has_room(self._ray, self._needs):
            told += "; no node has so much, one must join"
        print(f"{self._who}: {told}", file=sys.stderr, flush=True)


def require_room(ray: Any, who: str, needs: Mapping[str, float]) -> None:
    """Refuses what no node can ever hold, when no further node can join.

    Raises:
        UserError: what an actor needs, and what the cluster has.
    """
    if not can_grow() and not has_room(ray, needs):
        raise UserError(f"{who}: no node has a place: {_needs_and_has(ray, needs)}")


def has_room(ray: Any, needs: Mapping[str, float]) -> bool:
    """Whether some node could hold an actor if nothing else ran there."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return any(all(node.get(k, 0) >= v for k, v in needs.items()) for node in nodes)


def _needs_and_has(ray: Any, needs: Mapping[str, float]) -> str:
    nodes = sum(node["Alive"] for node in ray.nodes())
    total, free = ray.cluster_resources(), ray.available_resources()
    needed = ", ".join(f"{kind} {count:g}" for kind, count in needs.items())
    has = ", ".join(f"{kind} {total.get(kind, 0):g} ({free.get(kind, 0):g} free)" for kind in needs)
    return f"an actor needs {needed}; the cluster has {has} on {nodes} node{'s' * (nodes != 1)}"
