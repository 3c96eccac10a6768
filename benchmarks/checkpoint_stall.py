"""How long training waits for a save, beside a memory copy of the same bytes in the same run.

`python -m benchmarks.checkpoint_stall [--parameters 50000000] [--saves 5] [--device cpu]`. A model
of one wide layer under the one-process engine, so that a save is masters, two moments and an
average in float32: 16 bytes a parameter. The copy is from tensors that are there into tensors that
are there. The step is timed alone and while a save is written; what a run that waits for its saves
(`train.async_save: false`) would lose is printed too.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.checkpoint.agree import Alone
from trainer.checkpoint.retention import Retention
from trainer.checkpoint.saver import Saver, checkpoints
from trainer.checkpoint.staging import Staging
from trainer.checkpoint.write import Snapshot
from trainer.config import EmaConfig, OptimConfig
from trainer.ema.average import Ema
from trainer.engine.base import Setup
from trainer.engine.local import LocalEngine
from trainer.state import TrainState

_WIDTH = 2048


class Run:
    """Steps and snapshots of a model, without a loader."""

    def __init__(self, parameters: int, device: torch.device) -> None:
        layers = max(parameters // (_WIDTH * _WIDTH), 1)
        module = nn.Sequential(*(nn.Linear(_WIDTH, _WIDTH, bias=False) for _ in range(layers)))
        self.device = device
        self.engine = LocalEngine(module, OptimConfig(), Setup("fp32", 0, lambda w: 1), device)
        self.ema = Ema(self.engine.flats(), EmaConfig())
        self.state = TrainState(0)
        self.batch = torch.randn(16, _WIDTH, device=device)

    def step(self) -> None:
        loss = self.engine.module(self.batch).square().mean()
        self.engine.backward(loss)
        self.engine.step(1e-4, torch.zeros(1, device=self.device))
        self.ema.update(self.state.steps)
        self.state.advance(16, 1 << 20)
        self.state.steps += 1

    def snapshot(self) -> Snapshot:
        flats = self.ema.attach(self.engine.flats())
        return Snapshot(flats, {}, TrainState(**vars(self.state)), {}, None)

    def tensors(self) -> list[Tensor]:
        return [t for flat in self.snapshot().flats for t in flat.tensors.values()]


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """How long `work` takes, with what the device still had to do before it left out."""
    _wait(device)
    begun = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - begun


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(run: Run, folder: Path, saves: int) -> None:
    for _ in range(3):
        run.step()
    sources = run.tensors()
    pinned = run.device.type == "cuda"
    targets = [torch.zeros(t.shape, dtype=t.dtype, pin_memory=pinned) for t in sources]
    size = sum(t.numel() * t.element_size() for t in sources)

    def copy() -> None:
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source, non_blocking=True)

    copy()  # the system gives memory when it is first written to
    ranks, rules = Alone(), Retention(1)
    alone: list[float] = []
    copies: list[float] = []
    stalls: list[float] = []
    beside: list[float] = []
    wholes: list[float] = []
    waits: list[float] = []
    copied = checkpoints(folder / "goes_on", rules, Staging(run.snapshot(), ranks))
    direct = checkpoints(folder / "waits", rules, None)
    with (
        Saver(folder / "goes_on", ranks, threaded=True) as saver,
        Saver(folder / "waits", ranks, threaded=False) as waiting,
    ):
        for _ in range(saves):
            alone += [seconds(run.step, run.device) for _ in range(3)]
            copies.append(seconds(copy, run.device))
            begun = time.perf_counter()
            stalls.append(seconds(lambda: saver.begin(copied, run.snapshot()), run.device))
            while saver.take_complete(copied) is None:
                beside.append(seconds(run.step, run.device))
                saver.advance(saver.over)
            wholes.append(time.perf_counter() - begun)
            waits.append(seconds(lambda: waiting.begin(direct, run.snapshot()), run.device))
    stall, plain = statistics.median(stalls), statistics.median(copies)
    print(
        f"{size / 1e6:,.0f} MB a save, {len(sources)} tensors, {saves} saves, {run.device}; medians"
    )
    print("| | s | of the copy |")
    print("|---|---|---|")
    print(f"| memory copy of the same bytes | {plain:.3f} | 1.00 |")
    print(f"| training waits for a save | {stall:.3f} | {stall / plain:.2f} |")
    whole, wait = statistics.median(wholes), statistics.median(waits)
    print(f"| the whole save, training going on | {whole:.3f} | {whole / plain:.1f} |")
    print(f"| the whole save, training waiting | {wait:.3f} | {wait / plain:.1f} |")
    step, slowed = statistics.median(alone), statistics.median(beside)
    print(f"| a step alone | {step:.3f} | |")
    print(f"| a step beside a save | {slowed:.3f} | |")
    print(f"wanted: at most 1.50 times the copy; here {stall / plain:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=int, default=50_000_000)
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(options.parameters, torch.device(options.device))
        measure(run, Path(folder), options.saves)


if __name__ == "__main__":
    main()
