"""A CLIP's text tower without the other half, in a folder of open_clip's form without `vision_cfg`.

Pipelines that make pictures of captions bring no more of their CLIP than that.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn


def build_text_tower(config: Mapping[str, Any]) -> nn.Module:
    """open_clip's text transformer of a `model_cfg`, with random weights."""
    from open_clip.model import _build_text_tower  # open_clip has no other way to it

    tower: nn.Module = _build_text_tower(
        config["embed_dim"], dict(config["text_cfg"]), config.get("quick_gelu", False)
    )
    return tower.eval().requires_grad_(False)


def load_text_tower(config: Mapping[str, Any], weights: Path) -> nn.Module:
    """The same with the weights of a safetensors file.

    Raises whatever safetensors and torch raise for files that do not fit.
    """
    with torch.device("meta"):
        tower = build_text_tower(config)
    tower = tower.to_empty(device="cpu")
    found = tower.load_state_dict(load_file(weights), strict=False)
    lacking = set(found.missing_keys) - {"attn_mask"}  # no weight: built anew
    if lacking or found.unexpected_keys:
        raise ValueError(f"lacks {sorted(lacking)}, has {found.unexpected_keys} too many")
    mask: Any = tower
    if mask.attn_mask is not None:
        mask.attn_mask.fill_(float("-inf")).triu_(1)
    return tower
