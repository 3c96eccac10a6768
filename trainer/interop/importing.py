"""A foreign cascade made RUNs and a cascade.yaml of ours, one network after another.

Each RUN is whole or absent; what was imported before stays, so an interrupted import goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from base.clip_reference import CONFIG_NAME, WEIGHTS_NAMES, find_export
from base.config import dump_config
from base.errors import UserError, one_line
from base.files import (
    atomic_path,
    read_json,
    require_free_space,
    sha256_file,
    write_atomic,
    write_json,
)
from base.lease import NAME as LEASE
from base.lease import Lease
from base.progress import Progress
from base.stop import StopFlag
from trainer.builders import load_clip
from trainer.checkpoint.first import first_bytes, write_first
from trainer.checkpoint.folders import latest_checkpoint
from trainer.checkpoint.read import open_checkpoint
from trainer.config import AnyTrainConfig, DataConfig, LoopConfig, OptimConfig
from trainer.models.clip import open_clip_preprocessing
from trainer.models.decoder import Decoder
from trainer.models.prior import DiffusionPrior
from trainer.models.upsampler import Upsampler
from trainer.record import CONFIG, imported_facts, write_record
from trainer.sampling.config import CascadeConfig
from trainer.stages import STAGES

from .diffusers_source import INDEX, read_diffusers
from .karlo_source import holds_karlo, read_karlo
from .source import ForeignClip, Network, Source
from .whole_clip import holds_whole_clip, read_whole_clip

RECORD = "import.json"
CASCADE = "cascade.yaml"
_CLIP = "clip"
_KINDS: dict[str, Any] = {"prior": DiffusionPrior, "decoder": Decoder, "upsampler": Upsampler}
# Of a run that goes on from here, until its user says otherwise.
_DATA = "DATASET"
_OPTIM = OptimConfig(lr=1e-5, warmup=10_240)
_LOOP = LoopConfig(samples=1_024_000, batch=256, checkpoint_every=102_400)
_SPARE = 1.02  # headers, configs


class Imported(NamedTuple):
    """What an import made."""

    cascade: Path
    runs: dict[str, int]  # parameters by RUN
    clip: str


def import_cascade(folder: Path, out: Path, clip: str | None = None) -> Imported:
    """Import a diffusers UnCLIP folder, or one of Karlo's original files, into `out`.

    `clip`: the cascade's CLIP with both halves, where the folder has none or its text tower alone:
    transformers' CLIPModel folder, open_clip's, or a RUN.

    Raises:
        UserError: something is missing, or not what it should be; `out` holds something else; the
            disk has no room.
        KeyboardInterrupt, Stopped: stopped on request; the same call goes on.
    """
    source, given = _read(folder), None if clip is None else _given_clip(clip)
    if source.clip is None and given is None:
        raise UserError(
            f"{folder}: has no CLIP that is read here; name it with --clip, a folder of "
            "transformers' CLIPModel (openai/clip-vit-large-patch14) or of open_clip's"
        )
    _require_fitting(source, given)
    shapes = {network.name: _shapes(network) for network in source.networks}
    record = {"version": 1, "source": str(folder.absolute()), "clip": clip, "parts": list(shapes)}
    _require_ours(out, record)
    sizes = {name: first_bytes(each) for name, each in shapes.items()}
    left = sum(size for name, size in sizes.items() if not (out / name / "latest").is_file())
    require_free_space(out, int(left * _SPARE) + _clip_bytes(source, given))
    with Lease(out), StopFlag() as stop:
        write_json(out / RECORD, record)
        text = _import_clip(source, given, out)
        total = sum(_count(each) for each in shapes.values())
        with Progress("import", total, "parameters") as bar:
            for network in source.networks:
                stop.raise_if_requested()
                bar.advance(0, at=network.name)
                _import_network(network, shapes[network.name], out, text)
                bar.advance(_count(shapes[network.name]))
        cascade = CascadeConfig(
            clip=_CLIP if text == str(out / _CLIP) else text,
            prior=source.prior,
            decoder=source.decoder,
            upsamplers=(source.upsampler,),
        )
        write_atomic(out / CASCADE, dump_config(cascade))
    counts = {name: _count(each) for name, each in shapes.items()}
    return Imported(out / CASCADE, counts, text)


def _read(folder: Path) -> Source:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if (folder / INDEX).is_file():
        return read_diffusers(folder)
    if holds_karlo(folder):
        return read_karlo(folder)
    raise UserError(
        f"{folder}: holds neither {INDEX} (a diffusers UnCLIP pipeline) nor Karlo's original files"
    )


def _given_clip(clip: str) -> ForeignClip | str:
    """A CLIP of transformers' to be converted, or where one of open_clip's is."""
    folder = Path(clip)
    if find_export(folder) is None and holds_whole_clip(folder):
        return read_whole_clip(folder)
    load_clip(clip)  # cannot be loaded: told before anything is written
    return str(folder.absolute()) if folder.is_dir() else clip


def _require_fitting(source: Source, given: ForeignClip | str | None) -> None:
    """Prior and decoder are made for the embeddings and the captions of the cascade's CLIP."""
    used = source.clip if given is None else given
    if isinstance(used, str):
        folder = find_export(Path(used))
        config = {} if folder is None else read_json(folder / CONFIG_NAME).get("model_cfg", {})
    else:
        config = {} if used is None else used.config
    text = config.get("text_cfg", {})
    wanted = {
        "embedding_dim": config.get("embed_dim"),
        "text_width": text.get("width"),
        "context_length": text.get("context_length"),
    }
    for network in source.networks:
        for name, expected in wanted.items():
            got = getattr(network.model, name, expected)
            if expected is not None and got != expected:
                place = network.files[0].parent
                raise UserError(f"{place}: {name}: got {got}, expected {expected} as of its CLIP")


def _require_ours(out: Path, record: Mapping[str, Any]) -> None:
    """The folder is empty, or an import of the same."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out}: is a file, expected a folder for the cascade")
    if not {path.name for path in out.iterdir()} - {LEASE}:  # an import that had hardly begun
        return
    if not (out / RECORD).is_file():
        raise UserError(f"{out}: holds something else; choose another --out")
    if read_json(out / RECORD) != record:
        raise UserError(f"{out}: holds an import of something else; choose another --out")


def _shapes(network: Network) -> dict[str, tuple[int, ...]]:
    module = _outline(network)
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _outline(network: Network) -> nn.Module:
    with torch.device("meta"):
        module: nn.Module = _KINDS[network.stage](network.model)
    return module


def _count(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def _clip_bytes(source: Source, given: ForeignClip | str | None) -> int:
    used = source.clip if given is None else given
    return 0 if used is None or isinstance(used, str) else sum(p.stat().st_size for p in used.files)


def _import_network(
    network: Network, shapes: Mapping[str, tuple[int, ...]], out: Path, clip: str
) -> None:
    """Write a RUN, unless it is there already."""
    run = out / network.name
    hashes = {path.name: sha256_file(path) for path in network.files}
    if (run / "latest").is_file():
        _require_same(run, hashes)
        return
    weights = network.read()
    for name, shape in shapes.items():
        got = tuple(weights[name].shape)
        if got != shape:
            raise UserError(
                f"{network.files[0]}: {name} of {network.stage}: got {list(got)}, "
                f"expected {list(shape)}"
            )
    config = _config(network, run, clip)
    run.mkdir(parents=True, exist_ok=True)
    write_record(config, torch.device("cpu"))
    trained = {name for name, _ in _outline(network).named_parameters()}
    write_first(run, weights, trained, imported_facts(config, hashes), config.seed)


def _require_same(run: Path, hashes: Mapping[str, str]) -> None:
    latest = latest_checkpoint(run)
    assert latest is not None
    earlier = open_checkpoint(latest).manifest.facts.get("imported")
    if earlier != dict(hashes):
        raise UserError(f"{run / CONFIG}: is of other files than those given; choose another --out")


def _config(network: Network, run: Path, clip: str) -> AnyTrainConfig:
    made: AnyTrainConfig = STAGES[network.stage].config(
        stage=network.stage,
        out=run,
        data=DataConfig(paths=(_DATA,)),
        clip=None if network.stage == "upsampler" else clip,
        model=network.model,
        objective=network.objective,
        optim=_OPTIM,
        train=_LOOP,
    )
    return made


def _import_clip(source: Source, given: ForeignClip | str | None, out: Path) -> str:
    """Write the CLIP in open_clip's form, and say where it is."""
    own = source.clip
    if isinstance(given, str):
        if own is not None:
            _require_same_captions(own.read(), load_clip(given).state_dict(), given)
        return given
    used = own if given is None else given
    assert used is not None
    folder = out / _CLIP
    if not (folder / CONFIG_NAME).is_file():
        weights = {name: value.float().contiguous() for name, value in used.read().items()}
        if given is not None and own is not None:
            _require_same_captions(own.read(), weights, str(given.files[0]))
        config = {"model_cfg": dict(used.config), "preprocess_cfg": open_clip_preprocessing()}
        with atomic_path(folder / WEIGHTS_NAMES[0]) as temporary:
            save_file(weights, temporary, metadata={"format": "pt"})
        write_json(folder / CONFIG_NAME, config)
        _require_loadable(folder)
    return str(folder)


def _require_same_captions(
    own: Mapping[str, Tensor], other: Mapping[str, Tensor], name: str
) -> None:
    """A CLIP that is given beside reads captions as the pipeline's own does."""
    for key, value in own.items():
        if key.startswith("visual.") or key == "logit_scale":
            continue
        there = other.get(key)
        if (
            there is None
            or there.shape != value.shape
            or not torch.allclose(there.float(), value.float(), atol=1e-2)
        ):
            raise UserError(
                f"--clip: {name} is not the CLIP whose captions the pipeline reads ({key} differs)"
            )


def _require_loadable(folder: Path) -> None:
    try:
        load_clip(str(folder))
    except UserError as error:
        (folder / CONFIG_NAME).unlink()
        raise UserError(f"{folder}: was converted, but {one_line(error)}") from error
