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
import yaml

from base.clip_reference import find_weights
from base.config import dump_config, fingerprint
from base.errors import UserError
from base.files import read_json, sha256_file, write_atomic, write_json
from base.places import Place, folder_place
from data_pipeline.schema.dataset import ClipInfo, DatasetInfo, clip_from_json, clip_path
from data_pipeline.schema.selection import read_selection
from trainer.batch import Needs
from trainer.checkpoint.manifest import IDENTITY
from trainer.checkpoint.origin import parse_origin
from trainer.config import AnyTrainConfig
from trainer.loader.catalogue import Catalogue

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"

_SHUFFLE = ("streams", "shuffle_block", "shuffle_run", "shuffle_buffer")
_DATA = ("embeddings", "weights", "selection", *_SHUFFLE, "paths")  # what may make data differ

_PACKAGES = (
    "unclip",
    "torch",
    "deepspeed",
    "open_clip_torch",
    "numpy",
    "safetensors",
    "simplejpeg",
)


def run_facts(config: AnyTrainConfig, catalogue: Catalogue) -> dict[str, Any]:
    """What a checkpoint records of the run it belongs to."""
    datasets, data = catalogue.infos, config.data
    clips = [None if info.clip is None else info.clip.weights_sha256 for info in datasets]
    selections = [
        None if data.selection is None else read_selection(root, data.selection).to_json()
        for root in catalogue.roots
    ]
    shuffle = [getattr(data, name) for name in _SHUFFLE]
    order = [data.embeddings, data.weights, selections, shuffle]
    return {
        "stage": config.stage,
        "model": fingerprint(config.model),
        "seed": config.seed,
        "data": fingerprint([[info.plan_fingerprint for info in datasets], order]),
        "clips": clips,
        "init_from": config.init_from and str(parse_origin(config.init_from)),
        "config": fingerprint(config),
    }


def imported_facts(config: AnyTrainConfig, source: Mapping[str, str]) -> dict[str, Any]:
    """The same of a run whose weights came from elsewhere, before it has data: the first data that
    it is trained on will be its own. `source`: SHA-256 by the names of files."""
    return {
        "stage": config.stage,
        "model": fingerprint(config.model),
        "seed": config.seed,
        "data": None,
        "clips": [],
        "init_from": None,
        "config": fingerprint(config),
        "imported": dict(source),
    }


def require_same_run(
    facts: Mapping[str, Any], earlier: Mapping[str, Any], config: AnyTrainConfig
) -> None:
    """Refuse to continue a run with what it was not begun with.

    Weights to begin with need not be named again.

    Raises:
        UserError: names the first section that differs, and the setting where it is one.
    """
    out = config.out
    differing = [name for name in IDENTITY if facts[name] != earlier.get(name)]
    if "imported" in earlier and earlier.get("data") is None:  # not trained here on any data yet
        differing = [name for name in differing if name != "data"]
    # A DATASET that had no embeddings yet may have been given some since.
    embedded = zip(earlier.get("clips", ()), facts["clips"], strict=False)
    if any(before not in (None, now) for before, now in embedded):
        differing.append("data")
    if differing:
        raise UserError(
            f"{_difference(config, differing[0])}; go back to its {CONFIG}, or choose another `out`"
        )
    asked, begun = facts.get("init_from"), earlier.get("init_from")
    if asked not in (None, begun):
        raise UserError(
            f"init_from: got {asked}, but the run in {out} was begun with "
            f"{begun or 'random weights'}; leave it out, or choose another `out`"
        )


def _difference(config: AnyTrainConfig, section: str) -> str:
    """What of a section is not as in the run's own config.yaml; else the data themselves are."""
    try:
        before = yaml.safe_load((config.out / CONFIG).read_text())[section]
        now = yaml.safe_load(dump_config(config))[section]
        if section == "data":
            before, now = ({name: part[name] for name in _DATA} for part in (before, now))
        differing = _first_difference(before, now, section)
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        differing = None
    if differing is None:
        return f"{section}: differs from the run that was begun in {config.out}"
    name, old, new = differing
    return f"{name}: got {new!r}, but the run in {config.out} was begun with {old!r}"


def _first_difference(before: Any, now: Any, name: str) -> tuple[str, Any, Any] | None:
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return None if before == now else (name, before, now)
    for key in {**before, **now}:
        found = _first_difference(before.get(key), now.get(key), f"{name}.{key}")
        if found is not None:
            return found
    return None


def require_fitting_data(
    config: AnyTrainConfig, needs: Needs, datasets: Sequence[DatasetInfo]
) -> None:
    """Refuse data that the stage could not, or must not, be trained on.

    Raises:
        UserError: embeddings are missing, of several CLIPs, of another CLIP than the one whose
            captions the run reads, or of another width than the model's; or a crop is larger than
            the picture.
    """
    if needs.image_size is not None and needs.crop is not None and needs.crop > needs.image_size:
        raise UserError(f"objective.crop: got {needs.crop}, expected <= {needs.image_size}")
    if not needs.embeddings:
        return
    roots = [folder_place(path) for path in config.data.paths]
    clips = [_clip_of(config, root, info) for root, info in zip(roots, datasets, strict=True)]
    for root, clip in zip(roots, clips, strict=True):
        if clip != clips[0]:
            raise UserError(f"data.paths: {root} was embedded by another CLIP than {roots[0]}")
    width = getattr(config.model, "embedding_dim", clips[0].dim)
    if width != clips[0].dim:
        raise UserError(
            f"model.embedding_dim: got {width}, expected {clips[0].dim} as in {roots[0]}"
        )
    weights = None if config.clip is None else find_weights(config.clip)
    if clips[0].published:  # whose they are is the publisher's word, of which there is no hash
        return
    if weights is not None and sha256_file(weights) != clips[0].weights_sha256:
        raise UserError(f"clip: {config.clip} is not the CLIP that embedded {roots[0]}")


def _clip_of(config: AnyTrainConfig, root: Place, info: DatasetInfo) -> ClipInfo:
    """Who made the embeddings that the run reads of a DATASET."""
    name = config.data.embeddings
    if name is None:
        if info.clip is None:
            raise UserError(f"{root}: has no embeddings; make them with `unclip data embed`")
        return info.clip
    path = clip_path(root, name)
    if not path.is_file():
        raise UserError(f"{root}: has no embeddings named {name!r}; `unclip data embed --as`")
    return clip_from_json(read_json(path))


def write_record(config: AnyTrainConfig, device: torch.device, processes: int = 1) -> None:
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
            "device": _device_name(device),
            "threads": torch.get_num_threads(),
            "processes": processes,
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
