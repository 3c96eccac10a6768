"""A toy stage and a hand-made DATASET, small enough for every test of the engine.

Run as a script it is the trainer's command with the toy among its stages, so that tests can start
real processes: python tests/trainer/toy.py train CONFIG.
"""

from __future__ import annotations

import io
import json
import signal
import sys
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from base import yaml
from base.config import parse_config
from data_pipeline.schema import dataset as schema
from trainer.batch import Batch, Needs
from trainer.config import AnyTrainConfig
from trainer.rng import SampleRandom
from trainer.stages import STAGES, Parts, Stage

DIM = 8
SNAPSHOTS = {"powers": [0.05, 0.1], "snapshot_every": 24}  # for the section `ema`


@dataclass(frozen=True)
class ToyModelConfig:
    """A small net on embeddings."""

    embedding_dim: int = DIM
    width: int = 24


@dataclass(frozen=True)
class ToyObjectiveConfig:
    """`pictures`: also read pictures and tokens; the others are faults for tests."""

    pictures: bool = False
    poison: tuple[int, ...] = ()  # positions whose loss is NaN
    poison_from: int | None = None
    spikes: tuple[int, ...] = ()  # positions whose loss is a thousand times as large
    stop_at: tuple[int, ...] = ()  # positions at which the process asks itself to stop
    delay: float = 0.0  # seconds a micro-batch


class ToyModel(nn.Module):
    """An own parameter, an own buffer, matrices, and vectors."""

    def __init__(self, config: ToyModelConfig) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(config.embedding_dim))
        self.register_buffer("scale", torch.full((), 0.5))
        self.net = nn.Sequential(
            nn.Linear(config.embedding_dim, config.width),
            nn.GELU(),
            nn.LayerNorm(config.width),
            nn.Linear(config.width, config.embedding_dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.net((x + self.shift.float()).to(self.shift.dtype) * self.scale)
        return result.float()


class ToyObjective:
    """Predicts the image embedding from the noised text embedding."""

    def __init__(self, config: ToyObjectiveConfig) -> None:
        self.config = config
        size = 16 if config.pictures else None
        self.needs = Needs(
            image_size=size,
            crop=8 if size else None,
            tokens=config.pictures,
            embeddings=True,
            context_length=12,
        )

    def begin(self, model: nn.Module, batches: Sequence[Batch]) -> None:
        """Nothing to prepare."""

    def loss(
        self,
        model: nn.Module,
        batch: Batch,
        random: SampleRandom,
        context: object | None,
        index: int,
    ) -> Tensor:
        assert batch.image_embedding is not None
        assert batch.text_embedding is not None
        x = batch.text_embedding + 0.1 * random.normal("noise", DIM)
        if batch.image is not None and batch.tokens is not None:
            x = x + batch.image.float().mean((1, 2, 3))[:, None] / 255
            x = x + batch.tokens.float().mean(1)[:, None] / 49408
        loss = (model(x) - batch.image_embedding).square().mean(1)
        if loss.is_meta:  # faults hang on values
            return loss
        if self.config.delay:
            time.sleep(self.config.delay)
        if set(batch.positions.tolist()) & set(self.config.stop_at):
            signal.raise_signal(signal.SIGTERM)
        bad = torch.isin(batch.positions, torch.tensor(self.config.poison, dtype=torch.int64))
        if self.config.poison_from is not None:
            bad |= batch.positions >= self.config.poison_from
        high = torch.isin(batch.positions, torch.tensor(self.config.spikes, dtype=torch.int64))
        return torch.where(bad, torch.nan, torch.where(high, 1000 * loss, loss))

    def times(self, random: SampleRandom) -> Tensor:
        return random.uniform("time")


def register() -> None:
    """Make the toy a stage of this process."""

    def build(config: AnyTrainConfig, device: torch.device) -> Parts:
        return Parts(ToyModel(config.model), ToyObjective(config.objective))

    STAGES["toy"] = Stage(ToyModelConfig, ToyObjectiveConfig, build)


def toy_config(dataset: Path, out: Path, **sections: Any) -> AnyTrainConfig:
    """The toy's config; keyword sections are merged over the defaults."""
    register()
    return parse_config(toy_values(dataset, out, **sections), STAGES["toy"].config, "toy")


def toy_values(dataset: Path, out: Path, **sections: Any) -> dict[str, Any]:
    """Plain data of the toy's config."""
    values: dict[str, Any] = {
        "stage": "toy",
        "out": str(out),
        "data": {"paths": [str(dataset)], "shuffle_block": 2},
        "seed": 3,
        "model": {},
        "objective": {},
        "optim": {"lr": 1e-2, "weight_decay": 0.05, "clip_grad": 0.2, "warmup": 24},
        "train": {
            "samples": 96,
            "batch": 12,
            "micro_batch": 5,
            "precision": "fp32",
            "engine": "local",
            "zero_stage": 1,
            "checkpoint_every": 48,
            "log_every": 24,
            "threads": 1,
        },
        "ema": {"decay": 0.9},
    }
    for name, section in sections.items():
        old = values.get(name)
        values[name] = {**old, **section} if isinstance(old, dict) else section
    return values


def write_toy_config(path: Path, dataset: Path, out: Path, **sections: Any) -> Path:
    """The toy's config as a file."""
    path.write_text(yaml.dump(toy_values(dataset, out, **sections)))
    return path


def write_dataset(
    root: Path, sizes: Sequence[int], side: int = 32, seed: int = 0, dim: int = DIM
) -> Path:
    """A DATASET of random blots with captions and random unit embeddings.

    A size of 0 makes a shard of which nothing was kept.
    """
    random = np.random.default_rng(seed)
    for folder in ("shards", "metadata", "img_emb", "text_emb"):
        (root / folder).mkdir(parents=True)
    for shard, size in enumerate(sizes):
        if size:
            _write_shard(root, shard, size, side, dim, random)
    names = {f"{schema.shard_name(n)}.tar": size for n, size in enumerate(sizes) if size}
    (root / schema.SIZES_FILE).write_text(json.dumps(names))
    info = schema.DatasetInfo(
        version=schema.VERSION,
        input=sum(sizes),
        kept=sum(sizes),
        rejected=0,
        shards=len(sizes),
        image_size=side,
        plan_fingerprint=f"toy-{seed}-{list(sizes)}",
        clip=schema.ClipInfo("toy", "random:0", "0" * 64, "0" * 64, dim),
    )
    (root / schema.DATASET_FILE).write_text(json.dumps(info.to_json()))
    return root


def _write_shard(
    root: Path, shard: int, size: int, side: int, dim: int, random: np.random.Generator
) -> None:
    rows: list[dict[str, Any]] = []
    with tarfile.open(schema.tar_path(root, shard), "w", format=tarfile.USTAR_FORMAT) as tar:
        for row in range(size):
            key = schema.sample_key(shard, row)
            coarse = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            pixels = np.ascontiguousarray(coarse.repeat(side // 4, 0).repeat(side // 4, 1))
            jpeg = simplejpeg.encode_jpeg(pixels, quality=90)
            caption = f"blot {row} of shard {shard}"
            record: dict[str, Any] = {
                "key": key, "row": 0, "source_key": key, "url": None, "caption": caption,
                "captions": [caption], "width": side, "height": side, "original_width": side,
                "original_height": side, "sha256": "0" * 64, "phash": "0" * 16,
                "similarity": 0.0, "img_norm": 1.0, "text_norm": 1.0,
            }  # fmt: skip
            for kind, data in (("jpg", jpeg), ("txt", caption.encode()), ("json", b"{}")):
                member = tarfile.TarInfo(f"{key}.{kind}")
                member.size = len(data)
                record[f"{kind}_offset"] = tar.offset + tarfile.BLOCKSIZE
                record[f"{kind}_length"] = len(data)
                tar.addfile(member, io.BytesIO(data))
            rows.append(record)
    table = pa.Table.from_pylist(rows, schema=schema.METADATA_SCHEMA)
    pq.write_table(table, schema.metadata_path(root, shard))
    for path in (schema.img_emb_path(root, shard), schema.text_emb_path(root, shard)):
        array = random.standard_normal((size, dim)).astype(np.float32)
        array /= np.linalg.norm(array, axis=1, keepdims=True)
        np.save(path, array.astype(np.float16))


if __name__ == "__main__":
    import base.command
    from trainer.cli import app

    register()
    base.command.run(app)
