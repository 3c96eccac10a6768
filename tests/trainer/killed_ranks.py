"""Kills a rank of two at seeded moments: killed_ranks.py DATASET FOLDER SEED COUNT.

The run is the prior of configs/micro under ZeRO 2, that reads the captions of FOLDER/clip.

A moment is the n-th step, or the n-th look at the disk in a save, a rename or a removal, of one
rank; whoever comes to it sends SIGKILL to one of the two. What is left ends as it can, as under a
launcher that waits a while. Then two ranks finish the run. Ranks are forked children, so that torch
is imported once. What is found in between and at the end goes to FOLDER/report.json.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.utils.tensorboard  # seconds in every child otherwise
from killed import counted, last_checkpoint, look
from processes import free_port
from stages import stage_config

from base.files import sha256_file
from trainer.checkpoint import tensors, write
from trainer.config import AnyTrainConfig
from trainer.engine.deepspeed import _import_quietly
from trainer.engine.processes import group_scope
from trainer.loop import train
from trainer.session import Session

RANKS = 2
KINDS = ("training", "save", "rename", "pruning")
INSIDE = ("slices", "rank_", "trainer.json", "manifest.json")  # of a folder that goes
PATIENCE = 8.0  # seconds for a rank to notice that another is gone


class Moment(NamedTuple):
    """When and who."""

    kind: str
    observer: int  # the rank that comes to it
    point: int  # from 1
    victim: int


def main(data: Path, folder: Path, seed: int, count: int) -> None:
    quiet = configure(data, folder / "quiet")
    codes = launch(folder, quiet, partial(count_moments, folder))
    assert codes == [0] * RANKS, codes
    final = hashes(folder / "quiet")
    seen = [json.loads((folder / f"seen{rank}.json").read_text()) for rank in range(RANKS)]
    chance = random.Random(seed)
    report = []
    for index in range(count):
        moment = draw(chance, KINDS[(seed + index) % len(KINDS)], seen)
        report.append({"moment": moment._asdict(), **attempt(data, folder, moment, final)})
        (folder / "report.json").write_text(json.dumps(report))


def configure(data: Path, run: Path) -> AnyTrainConfig:
    """Four checkpoints, of which each but the first lets one go."""
    how = {"engine": "deepspeed", "zero_stage": 2, "checkpoint_every": 16, "keep": 1}
    settings = [f"train.{name}={value}" for name, value in how.items()]
    return stage_config("prior", data, run.parent, run.name, *settings, "train.micro_batch=8")


def draw(chance: random.Random, kind: str, seen: list[dict[str, int]]) -> Moment:
    """A moment of a kind, of all that a quiet run had."""
    observer = chance.choice([rank for rank in range(RANKS) if seen[rank].get(kind)])
    point = chance.randint(1, seen[observer][kind])
    return Moment(kind, observer, point, chance.randrange(RANKS))


def attempt(data: Path, folder: Path, moment: Moment, final: dict[str, str]) -> dict[str, Any]:
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    config = configure(data, run)
    killed = launch(folder, config, partial(die_at, folder, moment))
    between = look(run)
    finished = launch(folder, config, lambda rank: None)
    resumed = [json.loads((folder / f"resumed{rank}.json").read_text()) for rank in range(RANKS)]
    return {
        "codes": killed,
        "between": between,
        "finished": finished == [0] * RANKS,
        "resumed": resumed,
        "equal": hashes(run) == final,
        "left": sorted(path.name for path in (run / "checkpoints").iterdir()),
    }


def hashes(run: Path) -> dict[str, str]:
    """Weights, moments and averages of a run's end, by rank."""
    slices = last_checkpoint(run) / "slices"
    return {path.name: sha256_file(path) for path in sorted(slices.iterdir())}


def launch(folder: Path, config: AnyTrainConfig, prepare: Callable[[int], object]) -> list[int]:
    """Train on all ranks; the exit code of each, or the signal that ended it below zero."""
    port = free_port()
    children = [fork(rank, port, folder, config, prepare) for rank in range(RANKS)]
    (folder / "pids.json").write_text(json.dumps(children))
    codes: dict[int, int] = {}
    end: float | None = None
    while len(codes) < RANKS:
        for rank, child in enumerate(children):
            if rank in codes:
                continue
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                codes[rank] = os.waitstatus_to_exitcode(status)
                end = end or time.monotonic() + PATIENCE
            elif end is not None and time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.02)
    return [codes[rank] for rank in range(RANKS)]


def fork(
    rank: int, port: int, folder: Path, config: AnyTrainConfig, prepare: Callable[[int], object]
) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.dup2(os.open(folder / f"errors{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
        os.environ.update({"RANK": str(rank), "WORLD_SIZE": str(RANKS), **meeting})
        prepare(rank)
        with group_scope():
            result = train(config)
        (folder / f"resumed{rank}.json").write_text(json.dumps(result.resumed_from))
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def count_moments(folder: Path, rank: int) -> None:
    """Keep count of this rank's moments in a file."""
    seen: Counter[str] = Counter()

    def note(kind: str) -> None:
        seen[kind] += 1
        (folder / f"seen{rank}.json").write_text(json.dumps(seen))

    watch(note)


def die_at(folder: Path, moment: Moment, rank: int) -> None:
    """Send the signal when the moment has come."""
    left = moment.point

    def note(kind: str) -> None:
        nonlocal left
        left -= kind == moment.kind
        if left == 0:
            left = -1
            os.kill(json.loads((folder / "pids.json").read_text())[moment.victim], signal.SIGKILL)

    if rank == moment.observer:
        watch(note)


def watch(note: Callable[[str], None]) -> None:
    """Tell `note` of every moment of this process."""

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"):
            kind = kind_of(event, [str(argument) for argument in arguments[:2]])
            if kind is not None:
                note(kind)

    sys.addaudithook(audit)
    for module, name in ((tensors, "_data"), (write, "_forget"), (write, "sync")):
        setattr(module, name, counted(getattr(module, name), partial(note, "save")))
    Session.step = counted(Session.step, partial(note, "training"))  # type: ignore[method-assign]


def kind_of(event: str, paths: list[str]) -> str | None:
    if any(".removing-" in path for path in paths):
        return "pruning"
    if event in ("os.remove", "os.rmdir") and paths[0].startswith(INSIDE):
        return "pruning"
    if event == "os.rename" and (paths[1].endswith("latest") or Path(paths[1]).name.isdigit()):
        return "rename"
    return "save" if ".saving-" in paths[0] else None


if __name__ == "__main__":
    torch.set_num_threads(1)
    _import_quietly(torch.device("cpu"))
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
