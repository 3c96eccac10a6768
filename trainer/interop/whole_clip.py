"""A folder of transformers' CLIPModel: both towers in one file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from base.errors import UserError

from . import clip
from .files import read_config, read_tensors, weights_file
from .source import ForeignClip

_TEXT, _VISION = ("text_model.", "text_projection."), ("vision_model.", "visual_projection.")


def holds_whole_clip(folder: Path) -> bool:
    """Whether a folder has a config of transformers' CLIPModel."""
    if not (folder / "config.json").is_file():
        return False
    return {"text_config", "vision_config"} <= set(read_config(folder))


def read_whole_clip(folder: Path) -> ForeignClip:
    """What a folder of CLIPModel holds; of weights nothing is read yet.

    Raises:
        UserError: files are missing, or have what open_clip cannot express.
    """
    config = read_config(folder)
    dim = config.get("projection_dim", 512)
    path = weights_file(folder)
    try:
        made = clip.config_from_transformers(config["text_config"], config["vision_config"], dim)
    except (ValueError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise UserError(f"{folder / 'config.json'}: {error}") from error

    def read() -> Mapping[str, Tensor]:
        whole = read_tensors(path)
        halves: list[dict[str, Any]] = [
            {name: value for name, value in whole.items() if name.startswith(half)}
            for half in (_TEXT, _VISION)
        ]
        try:
            ours = clip.weights_from_transformers(made, *halves)
        except ValueError as error:
            raise UserError(f"{path}: {error}") from error
        return {**ours, **{name: whole[name] for name in ("logit_scale",) if name in whole}}

    return ForeignClip(made, (path,), read)
