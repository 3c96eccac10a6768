"""What the tests of several ranks run under torchrun, all in one go: ranks.py DATASET FOLDER.

FOLDER/local_half holds runs of one process that stopped half-way; the rest is made here, and
FOLDER/report.json tells what was compared.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
import toy
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from base.errors import Stopped, UserError, code_of
from data_pipeline.schema.dataset import metadata_path, tar_path
from trainer.checkpoint.read import resolve_checkpoint
from trainer.config import AnyTrainConfig
from trainer.engine.base import Flat
from trainer.engine.deepspeed import DeepSpeedEngine
from trainer.engine.open import micro_batches, open_engine
from trainer.engine.processes import environment_rank, group_scope
from trainer.loader.plan import Plan
from trainer.loader.samples import SampleReader
from trainer.loop import build_parts, train
from trainer.session import Session

CPU = torch.device("cpu")
AVERAGES = ("ema", "ema_0.050", "ema_0.100")
KINDS = ("master", "exp_avg", "exp_avg_sq", *AVERAGES)
BAD = 30  # a position in the third of four steps, which is skipped


def main(data: Path, folder: Path) -> None:
    report: dict[str, Any] = {}
    for zero in range(4):
        on = {"engine": "deepspeed", "zero_stage": zero}
        train(toy.toy_config(data, folder / f"whole{zero}", train=on, ema=toy.SNAPSHOTS))
        train(toy.toy_config(data, folder / f"half{zero}", train={**on, "samples": 48}))
        train(toy.toy_config(data, folder / "local_half" / str(zero), train=on))
        parts = folder / f"parts{zero}"
        stopping = {"stop_at": [20, 44]}  # between lines of metrics, and in an epoch
        config = toy.toy_config(data, parts, objective=stopping, train=on, ema=toy.SNAPSHOTS)
        for _ in "ab":
            with pytest.raises(Stopped):
                train(config)
        train(config)
        still = {"lr": 1e-12, "weight_decay": 0.0}
        begun = toy.toy_config(
            data, folder / f"begun{zero}", seed=8, optim=still, train={**on, "samples": 12},
            init_from=f"{folder / 'alone'}@48:raw",
        )  # fmt: skip
        train(begun)
        for precision in ("fp32", "bf16"):
            key = f"{zero} {precision}"
            report[key] = compare_with_full_gather(data, folder, zero, precision)
        report[f"{zero} collectives"] = [collectives(data, folder, zero, micro) for micro in (6, 2)]
    report["unreadable"] = unreadable(data, folder)
    report["failing disk"] = failing_disk(data, folder)
    report["finished"] = finished(data, folder)
    if environment_rank() == 0:
        (folder / "report.json").write_text(json.dumps(report))


def unreadable(data: Path, folder: Path) -> list[tuple[str, int]]:
    """A picture that one rank alone cannot read; then it is mended, and the run goes on.

    What each rank ended with, and the samples of the checkpoint that it found then.
    """
    on = {"engine": "deepspeed", "zero_stage": 2}
    copy, pictures = folder / "data", {"pictures": True}
    tar = tar_path(copy, 0)
    if environment_rank() == 0:
        shutil.copytree(data, copy)
        offset = pq.read_table(metadata_path(copy, 0))["jpg_offset"][3].as_py()
        with tar.open("r+b") as file:
            file.seek(offset)
            file.write(bytes(100))
    dist.barrier()
    config = toy.toy_config(copy, folder / "unread", objective=pictures, train=on)
    with pytest.raises(UserError) as caught:
        train(config)
    found = (str(caught.value), resolve_checkpoint(config.out).manifest.samples)
    if environment_rank() == 0:
        shutil.copy(tar_path(data, 0), tar)
    dist.barrier()
    train(config)
    train(toy.toy_config(copy, folder / "read", objective=pictures, train=on))
    return gathered(found)


def failing_disk(data: Path, folder: Path) -> list[tuple[str, int]]:
    """A disk that fails for a moment, on one rank's node; what each rank ended with."""

    def fail(*arguments: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    on = {"engine": "deepspeed", "zero_stage": 1}
    config = toy.toy_config(data, folder / "failing", objective={"pictures": True}, train=on)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError) as caught:
        if environment_rank() == 1:
            patch.setattr(os, "preadv", fail)
        train(config)
    return gathered((str(caught.value), code_of(caught.value)))


def finished(data: Path, folder: Path) -> list[str]:
    """What each rank says when a finished run is called with another learning rate."""
    on = {"engine": "deepspeed", "zero_stage": 2}
    config = toy.toy_config(data, folder / "whole2", optim={"lr": 0.5}, train=on, ema=toy.SNAPSHOTS)
    with redirect_stderr(io.StringIO()) as said:
        assert train(config).resumed_from == 96
    return gathered(said.getvalue())


def gathered(value: Any) -> list[Any]:
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, value)
    return everywhere


def compare_with_full_gather(data: Path, folder: Path, zero: int, precision: str) -> Any:
    """Largest differences between what the slices say and what DeepSpeed gathers itself."""
    config = toy.toy_config(
        data,
        folder / "unused",
        objective={"poison": [BAD]},
        ema=toy.SNAPSHOTS,
        train={"engine": "deepspeed", "zero_stage": zero, "precision": precision},
    )
    session = open_session(config)
    engine = session.engine
    assert isinstance(engine, DeepSpeedEngine)
    start = full(engine, "master")
    averages = {kind: {name: value.clone() for name, value in start.items()} for kind in AVERAGES}
    for step in range(4):
        before = session.state.ema_updates
        take_step(session, step)
        if session.state.ema_updates == before:
            continue
        for kind, average in averages.items():
            weight = 1 - session.ema.decay(before, kind)
            for name, value in full(engine, "master").items():
                average[name].lerp_(value, weight)
    pieces = assembled(engine, session.ema.attach(engine.flats()))
    difference = {
        kind: float(
            torch.stack(  # torch's max keeps a NaN, Python's loses it
                [
                    (pieces[kind][name] - value).abs().max()
                    for name, value in (averages.get(kind) or full(engine, kind)).items()
                ]
            ).max()
        )
        for kind in KINDS
    }
    engine.close()
    return {
        "difference": difference,
        "elements": sum(t.numel() for t in start.values()),
        "updates": session.state.ema_updates,
        "skipped": session.state.skipped,
    }


def collectives(data: Path, folder: Path, zero: int, micro: int) -> dict[str, int]:
    """What a step sends, by operation, in micro-batches of `micro` samples of this rank's six."""
    how = {"engine": "deepspeed", "zero_stage": zero, "micro_batch": micro}
    session = open_session(toy.toy_config(data, folder / "unused", train=how))
    take_step(session, 0)
    take_step(session, 1)  # ZeRO 3 learns the order of its gathers
    with Collectives() as mode:
        take_step(session, 2)
    session.engine.close()
    return dict(mode.found)


class Collectives(TorchDispatchMode):
    """Counts the operations of process groups."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function.namespace == "c10d":
            self.found[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


def open_session(config: AnyTrainConfig) -> Session:
    parts = build_parts(config, CPU)
    engine = open_engine(parts.model, config.optim, config.train, CPU)
    return Session(config, parts.objective, engine, {}, epoch_size=32)


def take_step(session: Session, step: int) -> None:
    config, engine = session.config, session.engine
    parts = micro_batches(config.train, engine.world_size)
    plan = Plan(
        config.data, session.objective.needs, 3, 0, 12, 9, engine.rank, engine.world_size, parts
    )
    positions = plan.positions(step)
    reader = SampleReader(config.data, session.objective.needs, 3)
    batches = [reader.batch(part) for part in np.array_split(positions, plan.micro_batches)]
    session.count(session.step(batches, 1e-2, []))


def full(engine: DeepSpeedEngine, kind: str) -> dict[str, Tensor]:
    """Every tensor whole, by DeepSpeed's own means (without ZeRO: by the optimizer's copies)."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    whole: Callable[[Any], Any] = (
        safe_get_full_fp32_param
        if kind == "master"
        else lambda parameter: safe_get_full_optimizer_state(parameter, kind)
    )
    found = {name: whole(parameter) for name, parameter in engine.module.named_parameters()}
    if any(value is None for value in found.values()):
        assert all(value is None for value in found.values())
        flats = engine._partition.flats()
        return {f.pieces[0].name: f.tensors[kind].clone() for f in flats}
    return {name: value.detach().reshape(-1).clone() for name, value in found.items()}


def assembled(engine: DeepSpeedEngine, flats: list[Flat]) -> dict[str, dict[str, Tensor]]:
    """The ranks' pieces put together; an element that nobody owns stays NaN."""
    own = [
        (kind, piece, tensor.narrow(0, piece.offset, piece.length).clone())
        for flat in flats
        for kind, tensor in flat.tensors.items()
        for piece in flat.pieces
    ]
    result: dict[str, dict[str, Tensor]] = {kind: {} for kind in KINDS}
    for part in engine.gather(own):
        for kind, piece, values in part:
            size = int(torch.Size(piece.shape).numel())
            whole = result[kind].setdefault(piece.name, torch.full((size,), torch.nan))
            assert whole[piece.start : piece.start + piece.length].isnan().all(), "owned twice"
            whole[piece.start : piece.start + piece.length] = values
    return result


if __name__ == "__main__":
    torch.set_num_threads(1)
    with group_scope():
        main(Path(sys.argv[1]), Path(sys.argv[2]))
