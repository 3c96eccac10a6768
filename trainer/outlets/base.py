"""The face of an outlet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor


class Outlet(Protocol):
    """Shows numbers as they come; on the first rank only."""

    def write(self, samples: int, values: Mapping[str, float]) -> None:
        """Show the numbers of the stretch that ended at `samples`."""
        ...

    def show(self, picture: Tensor, samples: int) -> None:
        """Show a picture of the run's progress, uint8 [3, H, W]."""
        ...

    def close(self) -> None:
        """Let go of files, threads and connections."""
        ...
