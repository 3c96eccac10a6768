"""What a RUN folder says of its run beside checkpoints: config, environment, identity."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from base.config import dump_config, fingerprint
from base.errors import UserError
from base.files import write_atomic, write_json
from data_pipeline.schema.dataset import DatasetInfo
from trainer.config import AnyTrainConfig
from trainer.engine.base import Engine

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"

_FIXED = ("stage", "model", "seed", "data")  # another value would be another run
_PACKAGES = (
    "unclip",
    "torch",
    "deepspeed",
    "open_clip_torch",
    "numpy",
    "safetensors",
    "simplejpeg",
)


def run_facts(config: AnyTrainConfig, datasets: Sequence[DatasetInfo]) -> dict[str, Any]:
    """What a checkpoint records of the run it belongs to."""
    clips = [None if info.clip is None else info.clip.weights_sha256 for info in datasets]
    order = [config.data.embeddings, config.data.shuffle_block]
    return {
        "stage": config.stage,
        "model": fingerprint(config.model),
        "seed": config.seed,
        "data": fingerprint([[info.plan_fingerprint for info in datasets], order]),
        "clips": clips,
        "config": fingerprint(config),
    }


def require_same_run(facts: Mapping[str, Any], earlier: Mapping[str, Any], out: Path) -> None:
    """Refuse to continue a run with what it was not begun with.

    Raises:
        UserError: names the first section that differs.
    """
    differing = [name for name in _FIXED if facts[name] != earlier.get(name)]
    # A DATASET that had no embeddings yet may have been given some since.
    embedded = zip(earlier.get("clips", ()), facts["clips"], strict=False)
    if any(before not in (None, now) for before, now in embedded):
        differing.append("data")
    if differing:
        raise UserError(
            f"{differing[0]}: differs from the run that was begun in {out}; "
            "go back to its config.yaml, or choose another `out`"
        )


def write_record(config: AnyTrainConfig, engine: Engine) -> None:
    """Write config.yaml and environment.json of this session."""
    write_atomic(config.out / CONFIG, dump_config(config))
    write_json(
        config.out / ENVIRONMENT,
        {
            "command": sys.argv,
            "commit": _commit(),
            "python": platform.python_version(),
            "packages": {name: _version(name) for name in _PACKAGES},
            "host": socket.gethostname(),
            "system": platform.platform(),
            "device": _device_name(engine.device),
            "threads": torch.get_num_threads(),
            "processes": engine.world_size,
            "slurm_job": os.environ.get("SLURM_JOB_ID"),
        },
    )


def _commit() -> str | None:
    """The source's commit, when it is a checkout and git is there."""
    source = Path(__file__).resolve().parents[1]
    if not (source / ".git").exists():
        return None
    try:
        asked = ["git", "-C", str(source), "rev-parse", "HEAD"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
