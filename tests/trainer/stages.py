"""The real stages at micro size, as tests run them; under torchrun: stages.py DATASET FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from trainer.config import AnyTrainConfig
from trainer.engine.processes import group_scope
from trainer.loop import train
from trainer.stages import load_train_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "micro"
STAGES = ("clip", "prior", "ar_prior", "decoder", "up64", "up256")
ON_RANKS = {"clip": 3, "prior": 1, "ar_prior": 3, "decoder": 2, "up64": 3}  # with which ZeRO stage


def stage_config(name: str, data: Path, folder: Path, run: str, *more: str) -> AnyTrainConfig:
    """A stage's micro config on `data`, its RUN at FOLDER/RUN, after FOLDER/clip where it needs."""
    overrides = [
        f"out={folder / run}",
        f"data.paths=[{data}]",
        "train.samples=64",
        "train.log_every=16",
        "train.batch=16",
        "train.micro_batch=5",
        "train.precision=fp32",
        "train.engine=local",
        "train.threads=1",
    ]
    if name in ("prior", "ar_prior", "decoder"):
        overrides.append(f"clip={folder / 'clip'}")
    return load_train_config(CONFIGS / f"{name}.yaml", [*overrides, *more])


def main(data: Path, folder: Path) -> None:
    for name, zero in ON_RANKS.items():
        more = ["train.engine=deepspeed", f"train.zero_stage={zero}"]
        train(stage_config(name, data, folder, f"{name}-ranks", *more))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with group_scope():
        main(Path(sys.argv[1]), Path(sys.argv[2]))
