"""The decoder and the two networks that it is in diffusers: UNet2DConditionModel with added keys
and values, and UnCLIPTextProjModel (our Conditioner).

Theirs puts the tokens of z_i before the text, ours after it: attention adds its keys up in no
order, and nothing marks a token's place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trainer.models.decoder import DecoderConfig
from trainer.models.unet import UNetConfig

from . import unet
from .settings import Kind, expect
from .ties import Ties, join, part, turned

_DOWN, _DOWN_ATTENDS = "ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"
_UP, _UP_ATTENDS = "ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"
_MIDDLE = "UNetMidBlock2DSimpleCrossAttn"
_KIND = Kind(
    "UNet2DConditionModel",
    free={
        **unet.FREE,
        "in_channels": 4,
        "out_channels": 4,
        "cross_attention_dim": 1280,
        "attention_head_dim": 8,
        "transformer_layers_per_block": 1,  # of another kind of block
    },
    fixed={
        **unet.FIXED,
        "mid_block_type": ("UNetMidBlock2DCrossAttn", _MIDDLE),
        "class_embed_type": (None, "identity"),
        "only_cross_attention": (False, False),
        "mid_block_only_cross_attention": (None, None),
        "dual_cross_attention": (False, False),
        "use_linear_projection": (False, False),
        "upcast_attention": (False, False),
        "resnet_skip_time_act": (False, False),
        "resnet_out_scale_factor": (1.0, 1.0),
        "conv_in_kernel": (3, 3),
        "conv_out_kernel": (3, 3),
        "attention_type": ("default", "default"),
        "class_embeddings_concat": (False, False),
        "addition_embed_type_num_heads": (64, 64),
    },
)
_PROJECTIONS = Kind(
    "UnCLIPTextProjModel",
    free={
        "clip_extra_context_tokens": 4,
        "clip_embeddings_dim": 768,
        "time_embed_dim": None,
        "cross_attention_dim": None,
    },
)
_NAMES = {
    "image_to_time": "clip_image_embeddings_project_to_time_embeddings",
    "image_to_tokens": "clip_extra_context_tokens_proj",
    "text_to_time": "embedding_proj",
    "text_in": "encoder_hidden_states_proj",
    "text_norm": "text_encoder_hidden_states_norm",
}
_NULL = "learned_classifier_free_guidance_embeddings"


def config_from_diffusers(
    network: Mapping[str, Any], projections: Mapping[str, Any]
) -> DecoderConfig:
    """Read the configs of a UNet2DConditionModel and of the UnCLIPTextProjModel beside it.

    Raises:
        ValueError: they have what our decoder cannot express, or do not fit together.
    """
    got, beside = _KIND.read(network), _PROJECTIONS.read(projections)
    sizes = unet.sizes_from(_KIND.name, got)
    attends = _read_block_types(got)
    config = UNetConfig(
        in_channels=got["in_channels"],
        out_channels=got["out_channels"],
        attention_levels=tuple(level for level, seen in enumerate(attends) if seen),
        head_width=_head_width(got["attention_head_dim"], got["block_out_channels"], attends),
        context_width=got["cross_attention_dim"],
        **sizes,
    )
    widths = {"cross_attention_dim": config.context_width, "time_embed_dim": config.time_width}
    for name, expected in widths.items():
        expect(f"{_PROJECTIONS.name}.{name}", beside[name], expected)
    return DecoderConfig(
        unet=config,
        embedding_dim=beside["clip_embeddings_dim"],
        text_width=beside["clip_embeddings_dim"],
        image_tokens=beside["clip_extra_context_tokens"],
        text_in_time=True,
    )


def config_to_diffusers(
    config: DecoderConfig, sample_size: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configs of the same UNet2DConditionModel and UnCLIPTextProjModel.

    Raises:
        ValueError: theirs cannot express it.
    """
    expect("text_width", config.text_width, config.embedding_dim)
    sizes, attends = unet.sizes_to(config.unet, sample_size), _attends(config.unet)
    down, up = _block_types(attends)
    heads = [min(config.unet.head_width, width) for width in sizes["block_out_channels"]]
    network = {
        **sizes,
        "down_block_types": list(down),
        "up_block_types": list(up),
        "cross_attention_dim": config.unet.context_width,
        "attention_head_dim": heads[0] if len(set(heads)) == 1 else heads,
    }
    beside = {
        "clip_extra_context_tokens": config.image_tokens,
        "clip_embeddings_dim": config.embedding_dim,
        "time_embed_dim": config.unet.time_width,
        "cross_attention_dim": config.unet.context_width,
    }
    return _KIND.write(network), _PROJECTIONS.write(beside)


def weights_from_diffusers(
    config: DecoderConfig, network: Mapping[str, Tensor], projections: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The state dicts of both as ours; `config` is ours, with `text_in_time`.

    Raises:
        ValueError: a tensor is missing or left over.
    """
    ours = join("decoder", _ties(config), network)
    conditioner = join("text_proj", _conditioner_ties(), projections)
    for kind in ("weight", "bias"):
        name = f"conditioner.image_to_tokens.{kind}"  # theirs are by (width, token), ours turned
        conditioner[name] = turned(conditioner[name], config.unet.context_width)
    null = "conditioner.null_image"
    return {**ours, **conditioner, null: conditioner[null][None]}


def weights_to_diffusers(
    config: DecoderConfig, ours: Mapping[str, Tensor], embedding_scale: float = 1.0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Our state dict as those of a UNet2DConditionModel and a UnCLIPTextProjModel.

    A decoder that puts no z_t into the timestep embedding gets a projection of zeros. The result
    takes z_i itself where ours takes `embedding_scale` · z_i.

    Raises:
        ValueError: a tensor is missing or left over.
    """
    inside = {name: ours[name] for name in ours if name.startswith("unet.")}
    network = part("decoder", _ties(config), inside)
    conditioner = {name: ours[name] for name in ours if name not in inside}
    time = conditioner["conditioner.image_to_time.weight"]
    if not config.text_in_time:
        conditioner["conditioner.text_to_time.weight"] = torch.zeros_like(time)
        conditioner["conditioner.text_to_time.bias"] = time.new_zeros(len(time))
    conditioner["conditioner.null_image"] = ours["conditioner.null_image"][0] / embedding_scale
    conditioner["conditioner.image_to_time.weight"] = time * embedding_scale
    tokens = "conditioner.image_to_tokens"
    weight, bias = conditioner[f"{tokens}.weight"] * embedding_scale, conditioner[f"{tokens}.bias"]
    conditioner[f"{tokens}.weight"] = turned(weight, config.image_tokens)
    conditioner[f"{tokens}.bias"] = turned(bias, config.image_tokens)
    return network, part("text_proj", _conditioner_ties(), conditioner)


def _ties(config: DecoderConfig) -> Ties:
    return {f"unet.{name}": theirs for name, theirs in unet.ties(config.unet).items()}


def _conditioner_ties() -> Ties:
    ties = {
        f"conditioner.{ours}.{kind}": (f"{theirs}.{kind}",)
        for ours, theirs in _NAMES.items()
        for kind in ("weight", "bias")
    }
    return {**ties, "conditioner.null_image": (_NULL,)}


def _attends(config: UNetConfig) -> list[bool]:
    if not config.attention_levels or not config.context_width:
        raise ValueError(
            f"unet.attention_levels: got {config.attention_levels} with context_width "
            f"{config.context_width}, expected a level that sees text"
        )
    return [level in config.attention_levels for level in range(len(config.multipliers))]


def _read_block_types(got: Mapping[str, Any]) -> list[bool]:
    """Which levels attend."""
    attends = [kind == _DOWN_ATTENDS for kind in got["down_block_types"]]
    if len(attends) != len(got["block_out_channels"]) or not any(attends):
        raise ValueError(
            f"{_KIND.name}.down_block_types: got {got['down_block_types']}, "
            f"expected one a level and {_DOWN_ATTENDS} among them"
        )
    down, up = _block_types(attends)
    expect(f"{_KIND.name}.down_block_types", got["down_block_types"], down)
    expect(f"{_KIND.name}.up_block_types", got["up_block_types"], up)
    return attends


def _block_types(attends: list[bool]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    down = tuple(_DOWN_ATTENDS if each else _DOWN for each in attends)
    return down, tuple(_UP_ATTENDS if each else _UP for each in reversed(attends))


def _head_width(given: Any, widths: tuple[int, ...], attends: list[bool]) -> int:
    """Our one width of heads, where no level's is wider than the level; the middle has the last."""
    heads = given if isinstance(given, tuple) else (given,) * len(widths)
    attends = [*attends[:-1], True]
    width = max(head for head, used in zip(heads, attends, strict=True) if used)
    for head, channels, used in zip(heads, widths, attends, strict=True):
        if used and head != min(width, channels):
            raise ValueError(f"{_KIND.name}.attention_head_dim: got {given}, expected one width")
    return int(width)
