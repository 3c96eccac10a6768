"""A diffusers UnCLIP folder: UnCLIPPipeline, or UnCLIPImageVariationPipeline, without a prior."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from base.errors import UserError
from trainer.diffusion.degradations import DegradationConfig
from trainer.models.clip import open_clip_preprocessing
from trainer.models.upsampler import UpsamplerConfig
from trainer.objectives.decoder import DecoderObjectiveConfig
from trainer.objectives.prior import PriorObjectiveConfig
from trainer.objectives.upsampler import UpsamplerObjectiveConfig

from . import clip, decoder, prior, upsampler
from .files import read_config, read_tensors, weights_file
from .schedulers import Schedule, read_scheduler
from .settings import expect
from .source import (
    ForeignClip,
    Network,
    Source,
    decoder_part,
    prior_part,
    upsampler_part,
)
from .tokenizers import require_clip_vocabulary

INDEX = "model_index.json"
PIPELINE, VARIATIONS = "UnCLIPPipeline", "UnCLIPImageVariationPipeline"
CLASSES = {
    "prior": "PriorTransformer",
    "decoder": "UNet2DConditionModel",
    "text_proj": "UnCLIPTextProjModel",
    "super_res_first": "UNet2DModel",
    "super_res_last": "UNet2DModel",
    "text_encoder": "CLIPTextModelWithProjection",
    "tokenizer": "CLIPTokenizer",
    "prior_scheduler": "UnCLIPScheduler",
    "decoder_scheduler": "UnCLIPScheduler",
    "super_res_scheduler": "UnCLIPScheduler",
}
_KARLO_PRIOR_DROP, _KARLO_DECODER_DROP = 0.2, 0.3  # of captions


def read_diffusers(folder: Path) -> Source:
    """What a folder holds; of weights nothing is read yet.

    Raises:
        UserError: a part is missing, of another class, or has what ours cannot express.
    """
    has_prior = _read_index(folder)
    decoding = _scheduler(folder, "decoder_scheduler")
    larger = _scheduler(folder, "super_res_scheduler")
    networks = []
    part = None
    if has_prior:
        network, limit = _prior(folder)
        networks.append(network)
        part = prior_part(limit)
    small = _decoder(folder, decoding)
    networks.append(small)
    side = small.objective.image_size
    networks.append(_upsampler(folder, "super_res_first", "up256", larger, side))
    networks.append(_upsampler(folder, "super_res_last", "up256_last", larger, side))
    require_clip_vocabulary(folder / "tokenizer")
    _require_clip_pixels(folder / "feature_extractor")
    vision = folder / "image_encoder"
    found = read_clip(folder / "text_encoder", vision if vision.is_dir() else None)
    return Source(tuple(networks), found, part, decoder_part(), upsampler_part())


def read_clip(text: Path, vision: Path | None) -> ForeignClip:
    """The CLIP in folders of transformers' classes.

    Raises:
        UserError: files are missing, or have what open_clip cannot express.
    """
    config = read_config(text)
    seen = None if vision is None else read_config(vision)
    with _told(text):
        dim = config.get("projection_dim", 512)
        made = clip.config_from_transformers(config, seen, dim)
    paths = [weights_file(place) for place in (text, vision) if place is not None]

    def read() -> Mapping[str, Tensor]:
        with _told(text):
            parts = [read_tensors(path) for path in paths]
            return clip.weights_from_transformers(made, *parts, *([None] * (2 - len(parts))))

    return ForeignClip(made, tuple(paths), read)


def _read_index(folder: Path) -> bool:
    """Whether the pipeline has a prior."""
    index = read_config(folder, INDEX)
    kind = index.get("_class_name")
    if kind not in (PIPELINE, VARIATIONS):
        raise UserError(
            f"{folder / INDEX}: _class_name: got {kind!r}, expected {PIPELINE} or {VARIATIONS}"
        )
    wanted = dict(CLASSES)
    if kind == VARIATIONS:
        del wanted["prior"], wanted["prior_scheduler"]
    for name, expected in wanted.items():
        entry = index.get(name)
        got = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        if got not in (expected, f"{expected}Fast"):
            raise UserError(f"{folder / INDEX}: {name}: got {got!r}, expected {expected}")
        if not (folder / name).is_dir():
            raise UserError(f"{folder / name}: no such folder, though {INDEX} names it")
    return bool(kind == PIPELINE)


def _require_clip_pixels(folder: Path) -> None:
    """Ours knows one way to bring pixels to CLIP: with its own mean and deviation."""
    if not folder.is_dir():
        return
    found, wanted = read_config(folder, "preprocessor_config.json"), open_clip_preprocessing()
    for theirs, ours in (("image_mean", "mean"), ("image_std", "std")):
        got = found.get(theirs, wanted[ours])
        near = isinstance(got, list) and len(got) == 3
        if not near or any(abs(a - b) > 1e-4 for a, b in zip(got, wanted[ours], strict=True)):
            raise UserError(f"{folder}: {theirs}: got {got}, expected CLIP's {wanted[ours]}")


def _scheduler(folder: Path, name: str) -> Schedule:
    with _told(folder / name):
        return read_scheduler(read_config(folder / name, "scheduler_config.json"))


def _prior(folder: Path) -> tuple[Network, float | None]:
    place, schedule = folder / "prior", _scheduler(folder, "prior_scheduler")
    with _told(place):
        config = prior.config_from_diffusers(read_config(place))
        objective = PriorObjectiveConfig(
            diffusion=schedule.diffusion,
            embedding_scale=1.0,
            embedding_length="raw",
            drop_text=_KARLO_PRIOR_DROP,
        )
    path = weights_file(place)
    read = _reader(place, lambda: prior.weights_from_diffusers(config, read_tensors(path)))
    return Network("prior", "prior", config, objective, (path,), read), schedule.limit


def _decoder(folder: Path, schedule: Schedule) -> Network:
    places = folder / "decoder", folder / "text_proj"
    configs = [read_config(place) for place in places]
    with _told(places[0]):
        config = decoder.config_from_diffusers(*configs)
        side = _side(configs[0])
        _require_pictures(schedule, config.unet.out_channels)
    objective = DecoderObjectiveConfig(
        image_size=side,
        diffusion=schedule.diffusion,
        embedding_scale=1.0,
        embedding_length="raw",
        drop_text=_KARLO_DECODER_DROP,
    )
    paths = tuple(map(weights_file, places))

    def weights() -> Mapping[str, Tensor]:
        return decoder.weights_from_diffusers(config, *map(read_tensors, paths))

    read = _reader(places[0], weights)
    return Network("decoder", "decoder", config, objective, paths, read)


def _upsampler(folder: Path, part: str, name: str, schedule: Schedule, small: int) -> Network:
    place = folder / part
    values = read_config(place)
    with _told(place):
        config = upsampler.config_from_diffusers(values)
        side = _side(values)
        _require_pictures(schedule, config.unet.out_channels)
        objective = upsampler_objective(small, side, schedule)
    path = weights_file(place)
    read = _reader(place, partial(_upsampler_weights, config, path))
    return Network(name, "upsampler", config, objective, (path,), read)


def _upsampler_weights(config: UpsamplerConfig, path: Path) -> dict[str, Tensor]:
    return upsampler.weights_from_diffusers(config, read_tensors(path))


def upsampler_objective(small: int, side: int, schedule: Schedule) -> UpsamplerObjectiveConfig:
    """Of a super-resolution from pictures of one side to another's.

    Raises:
        ValueError: the one is no multiple of the other.
    """
    if side % small:
        raise ValueError(f"sample_size: got {side}, expected a multiple of the decoder's {small}")
    return UpsamplerObjectiveConfig(
        image_size=side,
        crop=small if side > small else None,
        factor=side // small,
        antialias=True,
        diffusion=schedule.diffusion,
        degradation=DegradationConfig(kind="blur", blur_sigma=(0.6, 0.6), blur_kernel=3),
    )


def _require_pictures(schedule: Schedule, channels: int) -> None:
    """Predictions of pictures are kept in [-1, 1] here, and a learned variance has channels."""
    expect("UnCLIPScheduler.clip_sample_range", schedule.limit, 1.0)
    expect("out_channels", channels, 6 if schedule.diffusion.learned_variance else 3)


def _side(config: Mapping[str, Any]) -> int:
    side = config.get("sample_size")
    if type(side) is not int or side < 1:
        raise ValueError(f"sample_size: got {side!r}, expected the side of the pictures")
    return side


def _reader(place: Path, weights: Callable[[], Mapping[str, Tensor]]) -> Any:
    def read() -> Mapping[str, Tensor]:
        with _told(place):
            return weights()

    return read


@contextmanager
def _told(place: Path) -> Any:
    """What cannot be expressed is a user's line that begins with where it was found."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{place}: {what}") from error
