"""How each stage's model and objective are made from its config."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from base.clip_reference import (
    CONFIG_NAME,
    EXPORT,
    WEIGHTS_NAMES,
    find_export,
    find_weights,
    split_named,
)
from base.errors import UserError, one_line
from base.files import atomic_path, read_json, write_json
from trainer.checkpoint.export import read_weights
from trainer.checkpoint.manifest import TRAINER
from trainer.checkpoint.read import resolve_checkpoint
from trainer.config import AnyTrainConfig
from trainer.engine.base import DTYPES, Engine
from trainer.engine.open import resolve_precision
from trainer.loader.catalogue import Catalogue
from trainer.models.ar_prior import ArPrior
from trainer.models.clip import (
    UNIT,
    Clip,
    ClipConfig,
    ImageEncoder,
    TextConfig,
    TextEncoder,
    VisionConfig,
    describe_for_open_clip,
    load_open_clip,
    load_tokenizer,
    outline_open_clip,
    weights_for_open_clip,
)
from trainer.models.decoder import Decoder
from trainer.models.prior import DiffusionPrior
from trainer.models.space import EmbeddingSpace
from trainer.models.text_clip import build_text_tower, load_text_tower
from trainer.models.upsampler import Upsampler
from trainer.objectives.ar_prior import ArPriorObjective
from trainer.objectives.base import Parts
from trainer.objectives.clip import ClipObjective
from trainer.objectives.decoder import DecoderObjective
from trainer.objectives.negatives import OpposedCaptions
from trainer.objectives.prior import PriorObjective
from trainer.objectives.upsampler import UpsamplerObjective
from trainer.pca import Fit, fit_codec


def build_clip(config: AnyTrainConfig, device: torch.device) -> Parts:
    """CLIP and its contrastive objective."""
    opposed = _opposed_captions(config.objective.opposites)
    return Parts(Clip(config.model), ClipObjective(config.objective, config.model, opposed))


def build_prior(config: AnyTrainConfig, device: torch.device) -> Parts:
    """The diffusion prior over a frozen CLIP's captions."""
    text = _text_encoder(config, device)
    return Parts(DiffusionPrior(config.model), PriorObjective(config.objective, text))


def build_ar_prior(config: AnyTrainConfig, device: torch.device) -> Parts:
    """The autoregressive prior over a frozen CLIP's captions; its codec is yet to be fitted."""
    text = _text_encoder(config, device)
    return Parts(ArPrior(config.model), ArPriorObjective(config.objective, text))


def fit_ar_prior(config: AnyTrainConfig, engine: Engine, catalogue: Catalogue) -> None:
    """Fit the codec on the data: the first rank reads them, and all take what it found.

    Raises:
        UserError: the embeddings cannot be read; all ranks raise alike.
    """
    model = engine.module
    assert isinstance(model, ArPrior)
    found: Fit | str | None = None
    if engine.rank == 0:
        try:
            found = fit_codec(model.codec, catalogue, config.objective.fit_samples)
        except UserError as error:
            found = str(error)
    found = engine.gather(found)[0]
    if isinstance(found, str):
        raise UserError(found)
    assert found is not None
    model.codec.load_state_dict(found.state)
    if engine.rank == 0:
        print(f"{config.out}: {found}", file=sys.stderr)


def build_decoder(config: AnyTrainConfig, device: torch.device) -> Parts:
    """The decoder over a frozen CLIP's captions and image embeddings."""
    _require_channels(config)
    text = _text_encoder(config, device)
    return Parts(Decoder(config.model), DecoderObjective(config.objective, text))


def build_upsampler(config: AnyTrainConfig, device: torch.device) -> Parts:
    """An upsampler; it knows no caption."""
    _require_channels(config)
    return Parts(Upsampler(config.model), UpsamplerObjective(config.objective))


def _require_channels(config: AnyTrainConfig) -> None:
    """The network gives a picture, and twice its channels where variance is learned."""
    learned, got = config.objective.diffusion.learned_variance, config.model.unet.out_channels
    if got != (6 if learned else 3):
        raise UserError(
            f"model.unet.out_channels: got {got}, expected {6 if learned else 3}"
            f" with objective.diffusion.learned_variance: {str(learned).lower()}"
        )


def export_clip(run: Path, config: AnyTrainConfig) -> None:
    """Write a finished CLIP (averaged weights) so that open_clip itself loads it.

    Once for each last checkpoint: a run that was finished may have been trained further.
    """
    folder, record = run / EXPORT, (run / EXPORT).with_suffix(".json")
    manifest = resolve_checkpoint(run).manifest
    # Not the record of progress, which has times: an interrupted run has the same.
    source = {name: file.sha256 for name, file in manifest.files.items() if name != TRAINER}
    if record.is_file() and read_json(record) == source and (folder / CONFIG_NAME).is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / WEIGHTS_NAMES[0]) as temporary:
        save_file(weights_for_open_clip(read_weights(run, "ema")), temporary)
    write_json(folder / CONFIG_NAME, describe_for_open_clip(config.model))
    write_json(record, source)


def load_text_encoder(clip: str, space: EmbeddingSpace = UNIT) -> TextEncoder:
    """The frozen text encoder of a RUN of stage clip, an open_clip folder, or MODEL:WEIGHTS.

    Raises:
        UserError: it is none of these, or cannot be loaded.
    """
    model, name = _open(clip)
    return TextEncoder(model, load_tokenizer(name), space)


def load_encoders(
    clip: str, space: EmbeddingSpace = UNIT
) -> tuple[TextEncoder, ImageEncoder | None]:
    """Both halves of a frozen CLIP, named as for `load_text_encoder`; they move together.

    None in the place of the second where it is a folder of a text tower alone.
    """
    model, name = _open(clip)
    image = ImageEncoder(model, space) if hasattr(model, "visual") else None
    return TextEncoder(model, load_tokenizer(name), space), image


def load_clip(clip: str) -> nn.Module:
    """A frozen CLIP of open_clip's, named as for `load_text_encoder`."""
    return _open(clip)[0]


def _open(clip: str) -> tuple[nn.Module, str]:
    name, weights = _locate(clip)
    alone = _text_alone(clip)
    try:
        if alone is not None:
            return load_text_tower(*alone), name
        return load_open_clip(name, weights), name
    except Exception as error:  # open_clip, safetensors and torch.load raise what they like
        first = one_line(error)[:300]
        raise UserError(f"clip: {clip}: cannot be loaded ({first})") from error


def _text_alone(clip: str) -> tuple[Mapping[str, Any], Path] | None:
    """`model_cfg` and weights of a folder that holds a text tower and nothing else."""
    folder, weights = find_export(Path(clip)), find_weights(clip)
    if folder is None or weights is None:
        return None
    found = read_json(folder / CONFIG_NAME)
    config = found.get("model_cfg") if isinstance(found, dict) else None
    if not isinstance(config, dict) or "text_cfg" not in config or "vision_cfg" in config:
        return None
    return config, weights


def _locate(clip: str) -> tuple[str, Path | None]:
    """open_clip's name of a CLIP, and the weights file if that is apart."""
    folder = find_export(Path(clip))
    if folder is not None:
        return f"local-dir:{folder}", None
    named, weights = split_named(clip), find_weights(clip)
    if named is not None and weights is not None:
        return named[0], weights
    raise UserError(
        f"clip: got {clip!r}, expected a finished RUN of stage clip, a folder in open_clip's form, "
        "or MODEL:WEIGHTS_FILE"
    )


def _outlined(config: AnyTrainConfig, clip: str, space: EmbeddingSpace) -> TextEncoder:
    """A text encoder's shapes; of a CLIP that is not there yet those that the model expects."""
    folder, named = find_export(Path(clip)), split_named(clip)
    alone = _text_alone(clip)
    if alone is not None:
        with torch.device("meta"):
            model = build_text_tower(alone[0])
    elif folder is not None:
        model = outline_open_clip(f"local-dir:{folder}")
    elif named is not None:
        model = outline_open_clip(named[0])
    else:
        model = Clip(_assumed_clip(config)).clip.requires_grad_(False)
    length: Any = model.context_length

    def tokenise(captions: list[str]) -> Tensor:
        return torch.zeros(len(captions), length, dtype=torch.int64, device="meta")

    return TextEncoder(model, tokenise, space)


def _assumed_clip(config: AnyTrainConfig) -> ClipConfig:
    width = config.model.text_width
    length = getattr(config.model, "context_length", 77)
    text = TextConfig(width, layers=12, heads=max(width // 64, 1), context_length=length)
    vision = VisionConfig(image_size=32, patch_size=16, width=64, layers=1)
    return ClipConfig(config.model.embedding_dim, vision, text)


def _opposed_captions(opposites: Mapping[str, tuple[str, ...]]) -> OpposedCaptions | None:
    if not opposites:
        return None
    from open_clip.tokenizer import SimpleTokenizer  # slow to import

    try:
        return OpposedCaptions(opposites, SimpleTokenizer().encode)
    except ValueError as error:
        raise UserError(f"objective.opposites: {error}") from error


def _text_encoder(config: AnyTrainConfig, device: torch.device) -> TextEncoder:
    if config.clip is None:
        raise UserError(f"clip: missing, expected the CLIP whose captions the {config.stage} reads")
    precision = resolve_precision(config.train, device)
    load = partial(_outlined, config) if device.type == "meta" else load_text_encoder
    space = EmbeddingSpace(getattr(config.objective, "embedding_length", "unit"))
    text = load(config.clip, space).to(device, DTYPES[precision])
    wanted = {"model.text_width": text.width, "model.embedding_dim": text.embedding_dim}
    for field, expected in wanted.items():
        got = getattr(config.model, field.partition(".")[2])
        if got != expected:
            raise UserError(f"{field}: got {got}, expected {expected} as in {config.clip}")
    reader = getattr(config.model, "text", None)  # a decoder's own
    if reader is not None:
        if reader.context_length < text.context_length:
            raise UserError(
                f"model.text.context_length: got {reader.context_length}, expected at least the "
                f"{text.context_length} tokens of {config.clip}"
            )
        text.lengthen(reader.context_length)
    return text
