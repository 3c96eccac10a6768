"""A cascade of ours as the folder of a diffusers UnCLIPPipeline, or a RUN as the folders of its
networks, part by part.

What theirs cannot express is refused by the setting's name before anything is written.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from base.clip_reference import CONFIG_NAME, find_export, find_weights
from base.errors import UserError
from base.files import read_json, require_free_space, sync, write_json
from trainer.builders import load_clip
from trainer.checkpoint.read import require_whole, resolve_checkpoint
from trainer.checkpoint.tensors import entry_of, write_tensors
from trainer.config import AnyTrainConfig
from trainer.record import CONFIG
from trainer.sampling.config import (
    CascadeConfig,
    NetworkConfig,
    PartConfig,
    load_cascade_config,
    with_weights,
)
from trainer.stages import load_train_config, load_weights

from . import clip, decoder, prior, upsampler
from .diffusers_source import CLASSES, INDEX, PIPELINE
from .schedulers import Schedule, write_scheduler
from .settings import expect
from .tokenizers import write_tokenizer

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_LIBRARIES = {"text_proj": "unclip", "text_encoder": "transformers", "tokenizer": "transformers"}
_SPARE = 16 << 20  # bytes beside the weights


Write = Callable[[Path], None]


def export_cascade(path: Path, out: Path, weights: str | None = None) -> list[str]:
    """Write a cascade as a pipeline's folder; the names of its parts.

    `weights` replace those that the cascade names.

    Raises:
        UserError: theirs cannot express a setting, a RUN is missing, `out` is there already, or the
            disk has no room.
    """
    config = load_cascade_config(path)
    config = config if weights is None else with_weights(config, weights)
    parts = _pipeline(config)
    _require_whole_and_room(out, list(_networks(config)), config.clip)
    with _whole(out) as working:
        for write in parts.values():
            write(working)
        write_json(working / INDEX, _index())
    return list(parts)


def export_run(run: Path, out: Path, weights: str = "ema", samples: int | None = None) -> list[str]:
    """Write one RUN as the folders of its networks; their names.

    Raises:
        UserError: as `export_cascade`; a stage of which diffusers has no class.
    """
    network = NetworkConfig(run=str(run), samples=samples, weights=weights)
    config = _config_of(network)
    with _naming(str(run)):
        match config.stage:
            case "prior":
                parts = _prior(network, config)
            case "decoder":
                parts = _decoder(network, config)
            case "upsampler":
                parts = _upsampler(network, config, "super_res")
            case "clip":
                parts = _clip(str(run))
            case _:
                raise ValueError(f"stage: got {config.stage}, of which diffusers has no class")
    _require_whole_and_room(out, [network])
    with _whole(out) as working:
        for write in parts.values():
            write(working)
    return list(parts)


def _pipeline(config: CascadeConfig) -> dict[str, Write]:
    """What writes each part of a cascade, all settings looked at."""
    if config.prior is None:
        raise UserError("prior: missing in cascade.yaml, expected one, as UnCLIPPipeline has it")
    if len(config.upsamplers) != 1:
        raise UserError(
            f"upsamplers: got {len(config.upsamplers)}, expected one, as UnCLIPPipeline has it"
        )
    larger = config.upsamplers[0]
    last = larger.last_step or larger
    trained = {
        "prior": _config_of(config.prior),
        "decoder": _config_of(config.decoder),
        "upsamplers.0": _config_of(larger),
        "upsamplers.0.last_step": _config_of(last),
    }
    for name, stage in zip(trained, ("prior", "decoder", "upsampler", "upsampler"), strict=True):
        with _naming(f"{name}.run"):
            expect("stage", trained[name].stage, stage)
    _require_sampling(config)
    for name in ("prior", "decoder"):
        with _naming(f"{name}.run: {getattr(config, name).run}"):
            expect("objective.embedding_length", trained[name].objective.embedding_length, "raw")
    small, up = trained["decoder"].objective, trained["upsamplers.0"].objective
    with _naming(f"upsamplers.0.run: {larger.run}"):
        expect("objective.image_size", up.image_size, small.image_size * up.factor)
        expect("objective.antialias", up.antialias, True)
    with _naming(f"prior.run: {config.prior.run}"):
        parts = _prior(config.prior, trained["prior"], config.prior.limit)
    with _naming(f"decoder.run: {config.decoder.run}"):
        parts |= _decoder(config.decoder, trained["decoder"])
    with _naming(f"upsamplers.0.run: {larger.run}"):
        parts |= _upsampler(larger, trained["upsamplers.0"], "super_res_first")
        parts |= _upsampler(last, trained["upsamplers.0.last_step"], "super_res_last")
        parts |= _scheduler("super_res", Schedule(up.diffusion, 1.0))
    with _naming(f"clip: {config.clip}"):
        parts |= _clip(config.clip)
    return parts


def _require_sampling(config: CascadeConfig) -> None:
    """UnCLIPPipeline samples in one way alone; steps and guidance are told to its call."""
    assert config.prior is not None
    parts: dict[str, PartConfig] = {
        "prior": config.prior,
        "decoder": config.decoder,
        "upsamplers.0": config.upsamplers[0],
    }
    with _naming(""):
        for name, part in parts.items():
            expect(f"{name}.sampler", part.sampler, "ancestral")
        for name, guided in (("prior", config.prior), ("decoder", config.decoder)):
            expect(f"{name}.guidance_interval", guided.guidance_interval, None)
            expect(f"{name}.guidance_rescale", guided.guidance_rescale, 0.0)
        expect("prior.candidates", config.prior.candidates, 1)
        expect("decoder.threshold", config.decoder.threshold, "static")


def _prior(
    network: NetworkConfig, config: AnyTrainConfig, limit: float | None = None
) -> dict[str, Write]:
    theirs = prior.config_to_diffusers(config.model)
    scale = config.objective.embedding_scale

    def write(root: Path) -> None:
        _, ours = load_weights(Path(network.run), network.weights, network.samples)
        weights = prior.weights_to_diffusers(config.model, ours, scale)
        _write_network(root / "prior", theirs, weights)

    return {
        "prior": write,
        **_scheduler("prior", Schedule(config.objective.diffusion, limit)),
    }


def _decoder(network: NetworkConfig, config: AnyTrainConfig) -> dict[str, Write]:
    if config.model.text is not None:
        raise ValueError("model.text: got a reader of its own, expected null: theirs has none")
    objective = config.objective
    theirs, beside = decoder.config_to_diffusers(config.model, objective.image_size)

    def write(root: Path) -> None:
        _, ours = load_weights(Path(network.run), network.weights, network.samples)
        scale = objective.embedding_scale
        weights = decoder.weights_to_diffusers(config.model, ours, scale)
        _write_network(root / "decoder", theirs, weights[0])
        _write_network(root / "text_proj", beside, weights[1])

    return {"decoder": write, **_scheduler("decoder", Schedule(objective.diffusion, 1.0))}


def _upsampler(network: NetworkConfig, config: AnyTrainConfig, name: str) -> dict[str, Write]:
    theirs = upsampler.config_to_diffusers(config.model, config.objective.image_size)

    def write(root: Path) -> None:
        _, ours = load_weights(Path(network.run), network.weights, network.samples)
        weights = upsampler.weights_to_diffusers(config.model, ours)
        _write_network(root / name, theirs, weights)

    return {name: write}


def _scheduler(part: str, schedule: Schedule) -> dict[str, Write]:
    config, name = write_scheduler(schedule), f"{part}_scheduler"

    def write(root: Path) -> None:
        (root / name).mkdir()
        write_json(root / name / "scheduler_config.json", config)

    return {name: write}


def _clip(reference: str) -> dict[str, Write]:
    """The text tower and its tokenizer; the other half beside them where transformers knows it."""
    folder = find_export(Path(reference))
    if folder is None:
        raise ValueError("expected a folder of open_clip's form or a finished RUN")
    config = read_json(folder / CONFIG_NAME)["model_cfg"]
    text, vision = clip.config_to_transformers(config)

    def write(root: Path) -> None:
        ours = load_clip(reference).state_dict()
        halves = clip.weights_to_transformers(config, ours)
        for name, theirs, weights in zip(
            ("text_encoder", "image_encoder"), (text, vision), halves, strict=True
        ):
            if weights:
                _write_network(root / name, theirs, weights, "model.safetensors")

    tokens = partial(_write_tokens, text["max_position_embeddings"])
    return {"text_encoder": write, "tokenizer": tokens}


def _write_tokens(length: int, root: Path) -> None:
    write_tokenizer(root / "tokenizer", length)


def _write_network(
    folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], file: str = _WEIGHTS
) -> None:
    folder.mkdir()
    write_json(folder / "config.json", dict(config))
    entries = [entry_of(name, value.contiguous()) for name, value in sorted(weights.items())]
    write_tensors(folder / file, entries, {"format": "pt"})


def _index() -> dict[str, Any]:
    """model_index.json as diffusers 0.33.1 writes it, the last release that has the pipeline."""
    parts = {name: [_LIBRARIES.get(name, "diffusers"), kind] for name, kind in CLASSES.items()}
    return {"_class_name": PIPELINE, "_diffusers_version": "0.33.1", **parts}


def _networks(config: CascadeConfig) -> Iterator[NetworkConfig]:
    assert config.prior is not None
    yield config.prior
    yield config.decoder
    for item in config.upsamplers:
        yield from item.runs()


def _config_of(network: NetworkConfig) -> AnyTrainConfig:
    run = Path(network.run)
    if not (run / CONFIG).is_file():
        raise UserError(f"{run}: is no RUN, it has no {CONFIG}")
    return load_train_config(run / CONFIG)


def _require_whole_and_room(
    out: Path, networks: list[NetworkConfig], clip: str | None = None
) -> None:
    weights = None if clip is None else find_weights(clip)
    needed = _SPARE + (0 if weights is None else weights.stat().st_size)
    for network in networks:
        checkpoint = resolve_checkpoint(Path(network.run), network.samples)
        require_whole(checkpoint)
        manifest = checkpoint.manifest
        needed += 4 * sum(record.count for record in manifest.tensors.values())
    require_free_space(out, needed)


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `out` at the end; else nothing is left of it."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there already; choose another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    working = out.with_name(f".{out.name}.{uuid.uuid4().hex[:12]}.tmp")
    working.mkdir()
    try:
        yield working
        sync(working)
        if out.exists():
            out.rmdir()
        working.rename(out)
        sync(out.parent)
    except BaseException:
        shutil.rmtree(working, ignore_errors=True)
        raise


@contextmanager
def _naming(place: str) -> Iterator[None]:
    """What theirs cannot express is a user's line that begins with where it stands."""
    try:
        yield
    except (ValueError, KeyError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{place}: {what}" if place else what) from error
