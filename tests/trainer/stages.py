"""The real stages at micro size, as tests run them; on several ranks: stages.py DATASET FOLDER.

Beside each run of several ranks, FOLDER/NAME-ranks, there are two that end like it: NAME-stopped,
in which one rank was asked to stop, and NAME-damaged, whose newest checkpoint was spoilt.
FOLDER/damage.json tells what became of those.
"""

from __future__ import annotations

import io
import json
import random
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from base.errors import Stopped
from base.files import sha256_file
from trainer.config import AnyTrainConfig
from trainer.engine.processes import environment_rank, group_scope
from trainer.loop import train
from trainer.session import Session
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
        "train.pictures=0",
    ]
    if name in ("prior", "ar_prior", "decoder"):
        overrides.append(f"clip={folder / 'clip'}")
    return load_train_config(CONFIGS / f"{name}.yaml", [*overrides, *more])


def claim_embeddings(data: Path, clip: Path) -> None:
    """Let the data set say that `clip` made its (random) embeddings."""
    info = json.loads((data / "dataset.json").read_text())
    weights = clip / "exports/open_clip/open_clip_model.safetensors"
    info["clip"]["weights_sha256"] = sha256_file(weights)
    (data / "dataset.json").write_text(json.dumps(info))


def main(data: Path, folder: Path) -> None:
    chance, told = random.Random(5), {}
    for name, zero in ON_RANKS.items():
        more = ["train.engine=deepspeed", f"train.zero_stage={zero}", "train.checkpoint_every=32"]
        train(stage_config(name, data, folder, f"{name}-ranks", *more))
        config = stage_config(name, data, folder, f"{name}-stopped", *more)
        with stopping(rank=1, at=0), pytest.raises(Stopped):
            train(config)
        train(config)
        config = stage_config(name, data, folder, f"{name}-damaged", *more)
        told[name] = damaged_and_mended(folder / f"{name}-ranks", config, chance)
    if environment_rank() == 0:
        (folder / "damage.json").write_text(json.dumps(told))


@contextmanager
def stopping(rank: int, at: int) -> Iterator[None]:
    """SIGTERM to one rank, while it takes the step at so many samples."""
    step = Session.step

    def stepping(session: Session, *arguments: Any) -> Any:
        if (session.engine.rank, session.state.samples) == (rank, at):
            signal.raise_signal(signal.SIGTERM)
        return step(session, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "step", stepping)
        yield


def damaged_and_mended(source: Path, config: AnyTrainConfig, chance: random.Random) -> Any:
    """Spoil a file of a finished run's last checkpoint, and have all ranks finish it once more.

    The file, how it was spoilt, where each rank went on, and what the first one said.
    """
    last = config.out / "checkpoints/000000000064"
    names = ["manifest.json", "trainer.json", *(f"slices/rank_0000{n}.safetensors" for n in "01")]
    name, how = chance.choice(names), chance.choice(["flip", "truncate", "remove"])
    place, bit = chance.random(), 1 << chance.randrange(8)  # the same on all ranks
    if environment_rank() == 0:
        shutil.copytree(source, config.out)
        data = bytearray((last / name).read_bytes())
        data[int(place * len(data))] ^= bit
        cut = {"flip": data, "truncate": data[: len(data) // 2]}
        if how == "remove":
            (last / name).unlink()
        else:
            (last / name).write_bytes(cut[how])
    dist.barrier()
    with redirect_stderr(io.StringIO()) as said:
        resumed = train(config).resumed_from
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, resumed)
    return {"file": name, "how": how, "resumed": everywhere, "said": said.getvalue()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with group_scope():
        main(Path(sys.argv[1]), Path(sys.argv[2]))
