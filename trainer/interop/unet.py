"""The U-Net and what UNet2DConditionModel and UNet2DModel of diffusers have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from trainer.models.unet import UNet, UNetConfig

from .settings import expect
from .ties import Ties

FREE: Mapping[str, Any] = {
    "block_out_channels": (),
    "layers_per_block": 2,
    "down_block_types": (),
    "up_block_types": (),
    "dropout": 0.0,
    "norm_num_groups": 32,
    "resnet_time_scale_shift": "default",
    "sample_size": None,
}
FIXED: Mapping[str, tuple[Any, Any]] = {
    "center_input_sample": (False, False),
    "flip_sin_to_cos": (True, True),
    "freq_shift": (0, 0),
    "time_embedding_type": ("positional", "positional"),
    "time_embedding_dim": (None, None),
    "mid_block_scale_factor": (1, 1),
    "downsample_padding": (1, 1),
    "act_fn": ("silu", "silu"),
    "norm_eps": (1e-5, 1e-5),
    "num_class_embeds": (None, None),
}
_PLAIN = {
    "time.first": "time_embedding.linear_1",
    "time.second": "time_embedding.linear_2",
    "conv_in": "conv_in",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
}
_RESIDUAL = {
    "norm_in": "norm1",
    "conv_in": "conv1",
    "time": "time_emb_proj",
    "norm_out": "norm2",
    "conv_out": "conv2",
    "skip": "conv_shortcut",
}
_ATTENTION = {
    "norm": ("group_norm",),
    "qkv": ("to_q", "to_k", "to_v"),
    "context_kv": ("add_k_proj", "add_v_proj"),
    "out": ("to_out.0",),
}


def sizes_from(kind: str, got: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a UNetConfig that both of diffusers' classes describe alike.

    Raises:
        ValueError: they have what our U-Net cannot express.
    """
    widths = got["block_out_channels"]
    channels = widths[0] if widths else 0
    if not widths or any(width % channels for width in widths):
        raise ValueError(
            f"{kind}.block_out_channels: got {widths}, expected whole multiples of the first"
        )
    blocks = got["layers_per_block"]
    if isinstance(blocks, tuple):
        expect(f"{kind}.layers_per_block", blocks, blocks[:1] * len(blocks))
        blocks = blocks[0]
    shift = got["resnet_time_scale_shift"]
    if shift not in ("default", "scale_shift"):
        raise ValueError(
            f"{kind}.resnet_time_scale_shift: got {shift!r}, expected default or scale_shift"
        )
    return {
        "channels": channels,
        "multipliers": tuple(width // channels for width in widths),
        "blocks": blocks,
        "scale_shift": shift == "scale_shift",
        "dropout": got["dropout"],
        "norm_groups": got["norm_num_groups"],
    }


def sizes_to(config: UNetConfig, sample_size: int) -> dict[str, Any]:
    """The part of diffusers' config that both classes have; `sample_size` is the picture's side.

    Raises:
        ValueError: the network folds pixels, does not begin with a multiplier of 1, or has norms of
            different numbers of groups.
    """
    widths = [config.channels * multiplier for multiplier in config.multipliers]
    expect("unet.patch", config.patch, 1)
    expect("unet.multipliers.0", config.multipliers[0], 1)
    return {
        "sample_size": sample_size,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": widths,
        "layers_per_block": config.blocks,
        "dropout": config.dropout,
        "norm_num_groups": _groups(config),
        "resnet_time_scale_shift": "scale_shift" if config.scale_shift else "default",
    }


def _groups(config: UNetConfig) -> int:
    with torch.device("meta"):
        norms = [m for m in UNet(config).modules() if isinstance(m, torch.nn.GroupNorm)]
    found = sorted({norm.num_groups for norm in norms})
    if len(found) > 1:
        raise ValueError(
            f"unet.norm_groups: got {config.norm_groups}, which gives norms of {found} groups; "
            "expected one number, as diffusers has it"
        )
    return found[0]


def ties(config: UNetConfig) -> Ties:
    """Of every tensor of a U-Net."""
    stages = _stages(config)
    with torch.device("meta"):
        return {name: _theirs(name, stages) for name in UNet(config).state_dict()}


def _stages(config: UNetConfig) -> dict[str, tuple[str, str]]:
    """Our stage → their residual block and their attention block."""
    found = {
        "middle_in": ("mid_block.resnets.0", "mid_block.attentions.0"),
        "middle_out": ("mid_block.resnets.1", ""),
    }
    for way, each, change in (
        ("down", config.blocks, "downsamplers"),
        ("up", config.blocks + 1, "upsamplers"),
    ):
        count = len(config.multipliers)
        theirs = [
            pair
            for level in range(count)
            for pair in [
                *(
                    (f"{way}_blocks.{level}.resnets.{i}", f"{way}_blocks.{level}.attentions.{i}")
                    for i in range(each)
                ),
                *([(f"{way}_blocks.{level}.{change}.0", "")] if level < count - 1 else []),
            ]
        ]
        found |= {f"{way}.{index}": pair for index, pair in enumerate(theirs)}
    return found


def _theirs(name: str, stages: Mapping[str, tuple[str, str]]) -> tuple[str, ...]:
    module, _, kind = name.rpartition(".")
    if module in _PLAIN:
        return (f"{_PLAIN[module]}.{kind}",)
    stage, part, layer = module.rsplit(".", 2)
    residual, attention = stages[stage]
    if part == "residual":
        return (f"{residual}.{_RESIDUAL[layer]}.{kind}",)
    return tuple(f"{attention}.{inner}.{kind}" for inner in _ATTENTION[layer])
