"""Kills a training run at one file operation after another.

killed.py DATASET FOLDER STEP FIRST [EVERY], with a snapshot of averages every EVERY samples.

Each run is a forked child that sends itself SIGKILL at its n-th look at the disk: an open, rename,
removal, new folder, fsync, or a tensor about to be written. Then another child finishes the run.
What is found in between and at the end goes to FOLDER/report.json.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # optimizers do
import torch.utils.tensorboard  # seconds in every child otherwise
import toy

from base.files import sha256_file
from trainer.checkpoint import folders, tensors, write
from trainer.checkpoint.manifest import FOLDER, LATEST
from trainer.checkpoint.read import folder_faults
from trainer.checkpoint.snapshots import SNAPSHOTS
from trainer.config import AnyTrainConfig
from trainer.loop import train

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}
SLICES = "slices/rank_00000.safetensors"


def main(data: Path, folder: Path, step: int, first: int, every: int | None = None) -> None:
    config = configure(data, folder / "quiet", every)
    assert in_child(lambda: train(config)) == 0
    final = sha256_file(last_checkpoint(folder / "quiet") / SLICES)
    report: list[dict[str, Any]] = []
    point, killed = first, True
    while killed:
        run = folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        config = configure(data, run, every)
        killed = in_child(lambda: train_until(config, point)) == signal.SIGKILL  # noqa: B023
        entry = {"point": point, "killed": killed, "between": look(run)}
        entry["finished"] = in_child(lambda: train(config)) == 0  # noqa: B023
        entry["equal"] = sha256_file(last_checkpoint(run) / SLICES) == final
        entry["left"] = sorted(path.name for path in (run / FOLDER).iterdir())
        entry["snapshots"] = snapshots(run)
        entry["same"] = snapshots(run) == snapshots(folder / "quiet")
        report.append(entry)
        point += step
    (folder / "report.json").write_text(json.dumps(report))


def configure(data: Path, run: Path, every: int | None) -> AnyTrainConfig:
    how = {"samples": 60, "checkpoint_every": 12, "log_every": 12, "keep": 2}
    ema = {"powers": [0.05, 0.1], "snapshot_every": every} if every else {}
    return toy.toy_config(data, run, train=how, ema=ema)


def in_child(work: Callable[[], object]) -> int:
    """Fork, work, and give the signal that ended the child, or its exit code."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            work()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def train_until(config: AnyTrainConfig, point: int) -> None:
    """Train, and die at the `point`-th operation on files of the run."""
    seen = 0

    def count() -> None:
        nonlocal seen
        seen += 1
        if seen == point:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in EVENTS and str(config.out) in str(arguments[0]):
            count()

    sys.addaudithook(audit)
    for module, name in ((os, "fsync"), (tensors, "_data"), (write, "sync"), (folders, "sync")):
        setattr(module, name, counted(getattr(module, name), count))
    train(config)


def counted(function: Callable[..., Any], count: Callable[[], None]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        count()
        return function(*arguments)

    return call


def look(run: Path) -> dict[str, Any]:
    """What a reader finds in a run that was just killed."""
    latest = run / LATEST
    named = latest.read_text().strip() if latest.exists() else None
    whole: dict[str, dict[str, bool]] = {FOLDER: {}, SNAPSHOTS: {}}
    for root, found in whole.items():
        for path in sorted((run / root).glob("[0-9]*")):
            found[path.name] = folder_faults(path) == []
    return {"latest": named, "whole": whole[FOLDER], "snapshots": whole[SNAPSHOTS]}


def snapshots(run: Path) -> dict[str, str]:
    """Hashes of the snapshots' slices, of the whole run and nothing else in their folder."""
    folders = sorted((run / SNAPSHOTS).iterdir()) if (run / SNAPSHOTS).exists() else []
    return {path.name: sha256_file(path / SLICES) for path in folders}


def last_checkpoint(run: Path) -> Path:
    return run / FOLDER / (run / LATEST).read_text().strip()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
