"""Nothing of a run outlives it: no thread, no worker, no process group.

What is left at the interpreter's end can abort the process after all its work is done.
"""

import json
import multiprocessing
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
import toy

from base.errors import Diverged
from trainer.engine.processes import group_scope
from trainer.loop import train

ENDS = Path(__file__).with_name("ends.py")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("engine", ["local", "deepspeed"])
@pytest.mark.parametrize("poison", [None, 0])
def test_training_leaves_no_thread_and_no_worker(
    deepspeed_ready: None,
    dataset: Path,
    tmp_path: Path,
    engine: str,
    workers: int,
    poison: int | None,
) -> None:
    """At its end, and when it fails with batches read ahead."""
    before = _alive()
    config = toy.toy_config(
        dataset,
        tmp_path / "run",
        objective={"poison_from": poison},
        train={"engine": engine, "workers": workers, "samples": 1200 if poison == 0 else 48},
    )
    if poison is None:
        train(config)
    else:
        with pytest.raises(Diverged):
            train(config)
    end = time.monotonic() + 20  # a worker that was told to end, and its queue's thread, may take
    while left := _alive() - before:
        assert time.monotonic() < end, left
        time.sleep(0.05)


def _alive() -> set[object]:
    """Threads and child processes of this process."""
    return {*threading.enumerate(), *multiprocessing.active_children()}


@pytest.mark.parametrize(
    ("ranks", "zero", "poison", "code"),
    [(1, 2, "null", 0), (2, 0, "null", 0), (2, 3, "null", 0), (2, 1, "0", 4)],
)
def test_no_process_group_outlives_the_command(
    dataset: Path,
    tmp_path: Path,
    torchrun: Callable[[int, Path, Sequence[object]], str],
    ranks: int,
    zero: int,
    poison: str,
    code: int,
) -> None:
    how = {"engine": "deepspeed", "zero_stage": zero, "samples": 960}
    path = toy.write_toy_config(tmp_path / "a.yaml", dataset, tmp_path / "run", train=how)
    torchrun(ranks, ENDS, [tmp_path, "train", path, "--set", f"objective.poison_from={poison}"])
    for rank in range(ranks):
        left: Any = json.loads((tmp_path / f"{rank}.json").read_text())
        gloo = left.pop("gloo")
        assert left == {"code": code, "group": False, "threads": ["MainThread"]}
        if zero < 3 and code == 0:  # DeepSpeed's ZeRO 3 is never freed, and an error holds frames
            assert gloo == []


def test_a_group_of_the_caller_stays(tmp_path: Path) -> None:
    if dist.is_initialized():  # earlier tests' own
        with group_scope():
            pass
        assert dist.is_initialized()
        return
    dist.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        with group_scope():
            pass
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()
