"""The memory that writing weights takes, in a process of its own: exporting.py SMALL RUN FOLDER.

Prints, as JSON, the rise of the resident memory's peak for each way of writing a RUN's weights.
Those of SMALL are written before, so that what libraries load at their first use is not counted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from trainer.checkpoint.export import export
from trainer.checkpoint.synthesis import synthesise


def main(small: Path, run: Path, folder: Path) -> None:
    peaks(small, folder)
    print(json.dumps(peaks(run, folder)))


def peaks(run: Path, folder: Path) -> dict[str, int]:
    """Bytes by way of writing."""
    found = {
        weights: peak_of(lambda: export(run, weights, folder / weights, replace=True))  # noqa: B023
        for weights in ("raw", "ema", "ema_0.050")
    }
    return {**found, "0.07": peak_of(lambda: synthesise(run, 0.07, folder / "0.07", replace=True))}


def peak_of(work: Callable[[], object]) -> int:
    """Bytes by which the peak rises over what was resident before."""
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    work()
    return resident("VmHWM") - before


def resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) << 10


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*map(Path, sys.argv[1:]))
