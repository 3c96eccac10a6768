"""Free ports of the loopback interface."""

from __future__ import annotations

import random
import socket
from collections.abc import Sequence
from contextlib import suppress

# Below those that systems give to outgoing connections, which come and go.
_FIRST, _LAST = 20_000, 32_000


def free_ports(names: Sequence[str]) -> dict[str, int]:
    """A port for each name; drawn, so that two testbeds that start at once hardly meet."""
    candidates = random.SystemRandom().sample(range(_FIRST, _LAST), _LAST - _FIRST)
    free = (port for port in candidates if _is_free(port))
    return {name: next(free) for name in names}


def answers(port: int) -> bool:
    """Whether somebody listens there."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
