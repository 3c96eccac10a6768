"""Halves of runs on several ranks: worlds.py DATASET FOLDER RUN ZERO SAMPLES [RUN ZERO SAMPLES …].

Beside each run, in FOLDER/seen/RUN, every rank leaves which sample it took at which position.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import toy

from trainer.batch import Batch
from trainer.engine.processes import environment_rank, environment_world_size, group_scope
from trainer.loop import train


def part(data: Path, folder: Path, run: str, how: dict[str, Any]) -> None:
    """Train up to `how["samples"]`, and leave what was seen."""
    with seeing() as seen:
        train(toy.toy_config(data, folder / run, train=how))
    name = f"{how['samples']}-{environment_world_size()}-{environment_rank()}.json"
    (folder / "seen" / run).mkdir(parents=True, exist_ok=True)
    (folder / "seen" / run / name).write_text(json.dumps(seen))


@contextmanager
def seeing() -> Iterator[list[tuple[int, list[float]]]]:
    """Positions and text embeddings, which are each sample's own, in the order of training."""
    seen: list[tuple[int, list[float]]] = []
    plain = toy.ToyObjective.loss

    def loss(self: toy.ToyObjective, model: Any, batch: Batch, *more: Any) -> Any:
        assert batch.text_embedding is not None
        if not batch.positions.is_meta:  # FLOPs are counted on shapes alone
            seen.extend(zip(batch.positions.tolist(), batch.text_embedding.tolist(), strict=True))
        return plain(self, model, batch, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy.ToyObjective, "loss", loss)
        yield seen


if __name__ == "__main__":
    torch.set_num_threads(1)
    data, folder, words = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    with group_scope():
        for run, zero, samples in zip(words[::3], words[1::3], words[2::3], strict=True):
            how = {"engine": "deepspeed", "zero_stage": int(zero), "samples": int(samples)}
            part(data, folder, run, how)
