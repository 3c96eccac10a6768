"""What a RUN folder says of its run beside checkpoints: config, environment, identity."""

from __future__ import annotations

import os
import platform
import socket
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
_PACKAGES = ("torch", "deepspeed", "open_clip_torch", "numpy", "safetensors", "simplejpeg")


def run_facts(config: AnyTrainConfig, datasets: Sequence[DatasetInfo]) -> dict[str, Any]:
    """What a checkpoint records of the run it belongs to."""
    clips = [None if info.clip is None else info.clip.weights_sha256 for info in datasets]
    order = [config.data.embeddings, config.data.shuffle_block]
    return {
        "stage": config.stage,
        "model": fingerprint(config.model),
        "seed": config.seed,
        "data": fingerprint([[info.plan_fingerprint for info in datasets], clips, order]),
        "clips": clips,
        "config": fingerprint(config),
    }


def require_same_run(facts: Mapping[str, Any], earlier: Mapping[str, Any], out: Path) -> None:
    """Refuse to continue a run with what it was not begun with.

    Raises:
        UserError: names the first section that differs.
    """
    for name in _FIXED:
        if facts[name] != earlier.get(name):
            raise UserError(
                f"{name}: differs from the run that was begun in {out}; "
                "go back to its config.yaml, or choose another `out`"
            )


def write_record(config: AnyTrainConfig, engine: Engine) -> None:
    """Write config.yaml and environment.json of this session."""
    write_atomic(config.out / CONFIG, dump_config(config))
    write_json(
        config.out / ENVIRONMENT,
        {
            "command": sys.argv,
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


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
