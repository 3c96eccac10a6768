"""What a RUN folder says of its run beside checkpoints: config, environment, identity."""

from __future__ import annotations

import os
import platform
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
import yaml

from base.clip_reference import find_weights
from base.config import dump_config, fingerprint, parse_config
from base.errors import UserError
from base.files import read_json, sha256_file, write_atomic, write_json
from base.places import Place, folder_place
from base.source import commit
from data_pipeline.schema.dataset import ClipInfo, DatasetInfo, clip_from_json, clip_path
from data_pipeline.schema.selection import read_selection
from trainer.batch import Needs
from trainer.checkpoint.manifest import IDENTITY
from trainer.checkpoint.origin import parse_origin
from trainer.config import AnyTrainConfig, DataConfig
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
    datasets = catalogue.infos
    clips = [None if info.clip is None else info.clip.weights_sha256 for info in datasets]
    return {
        "stage": config.stage,
        "model": fingerprint(config.model),
        "seed": config.seed,
        "data": data_fingerprint(config.data, catalogue.roots, datasets),
        "clips": clips,
        "init_from": config.init_from and str(parse_origin(config.init_from)),
        "config": fingerprint(config),
    }


def data_fingerprint(data: DataConfig, roots: Sequence[Place], infos: Sequence[DatasetInfo]) -> str:
    """Of which samples in which order a run reads: equal for DATASETs that lie elsewhere now."""
    selections = [
        None if data.selection is None else read_selection(root, data.selection).to_json()
        for root in roots
    ]
    shuffle = [getattr(data, name) for name in _SHUFFLE]
    order = [data.embeddings, data.weights, selections, shuffle]
    return fingerprint([[info.plan_fingerprint for info in infos], order])


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


def unused_changes(config: AnyTrainConfig) -> list[str]:
    """What a complete run was not trained with, as its own config.yaml tells: `name: got …`.

    Where the folder lies, and what it began with, are not looked at.
    """
    before, now = _both(config)
    return [
        f"{name}: got {new!r}, but it was trained with {old!r}"
        for section in before
        if section not in ("out", "init_from")
        for name, old, new in _differences(before[section], now.get(section), section)
    ]


def _difference(config: AnyTrainConfig, section: str) -> str:
    """What of a section is not as in the run's own config.yaml; else the data themselves are."""
    before, now = (both.get(section) for both in _both(config))
    if section == "data" and isinstance(before, dict) and isinstance(now, dict):
        before, now = ({name: part.get(name) for name in _DATA} for part in (before, now))
    differing = None if before is None else next(_differences(before, now, section), None)
    if differing is None:
        return f"{section}: differs from the run that was begun in {config.out}"
    name, old, new = differing
    return f"{name}: got {new!r}, but the run in {config.out} was begun with {old!r}"


def _both(config: AnyTrainConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run's own config.yaml, nothing where it cannot be read, and the config given.

    What an earlier version did not write has its default.
    """
    now = yaml.safe_load(dump_config(config))
    try:
        before = yaml.safe_load((config.out / CONFIG).read_text())
        before = yaml.safe_load(dump_config(parse_config(before, type(config), CONFIG)))
    except (OSError, ValueError, UserError, yaml.YAMLError):
        return {}, now
    return before, now


def _differences(before: Any, now: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    """(name, old, new) of every setting that differs."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        if before != now:
            yield name, before, now
        return
    for key in {**before, **now}:
        yield from _differences(before.get(key), now.get(key), f"{name}.{key}")


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
    name = config.data.embeddings
    clips = [clip_of(root, info, name) for root, info in zip(roots, datasets, strict=True)]
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


def clip_of(root: Place, info: DatasetInfo, name: str | None) -> ClipInfo:
    """Who made the embeddings of a DATASET, or those of its further set `name`.

    Raises:
        UserError: it has none.
    """
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
            "commit": commit(),
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


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
