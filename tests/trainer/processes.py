"""Processes that tests start."""

import os
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def environment(**more: str) -> dict[str, str]:
    """The environment of a process that a test starts."""
    alone = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    path = os.pathsep.join([str(ROOT), str(HERE)])
    return {**alone, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}
