"""Karlo's original checkpoints, as its own code names them, in our networks.

What is meant by a state dict here is the checkpoint's entry of that name. Its attention keeps
query, key and value of one head side by side, ours those of all heads; its convolutions over tokens
are our linear layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from trainer.models.decoder import Decoder, DecoderConfig
from trainer.models.prior import DiffusionPrior, PriorConfig
from trainer.models.unet import UNet, UNetConfig
from trainer.models.upsampler import UpsamplerConfig

from .ties import join, turned

_PRIOR = {
    "text_states_in": "text_enc_proj",
    "text_embedding_in": "text_emb_proj",
    "image_in": "clip_img_proj",
    "image_out": "out_proj",
    "final_token": "prd_emb",
    "positions": "positional_embedding",
    "time.first": "time_embed.0",
    "time.second": "time_embed.2",
    "norm_out": "final_ln",
}
_BLOCK = {
    "norm_attention": "ln_1",
    "qkv": "attn.c_qkv",
    "out": "attn.c_proj",
    "norm_mlp": "ln_2",
    "expand": "mlp.c_fc",
    "contract": "mlp.c_proj",
}
_UNET = {
    "time.first": "time_embed.0",
    "time.second": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "norm_out": "out.0",
    "conv_out": "out.2",
}
_RESIDUAL = {
    "norm_in": "in_layers.0",
    "conv_in": "in_layers.2",
    "time": "emb_layers.1",
    "norm_out": "out_layers.0",
    "conv_out": "out_layers.3",
    "skip": "skip_connection",
}
_ATTENTION = {"norm": "norm", "qkv": "qkv", "context_kv": "encoder_kv", "out": "proj_out"}
_CONDITIONER = {
    "image_to_time": "clip_emb",
    "image_to_tokens": "clip_tok_proj",
    "text_to_time": "text_feat_proj",
    "text_in": "text_seq_proj.0",
    "text_norm": "text_seq_proj.1",
    "null_image": "cf_param",
}


def prior_weights(
    config: PriorConfig, theirs: Mapping[str, Tensor], mean: Tensor, std: Tensor
) -> dict[str, Tensor]:
    """Their prior's state dict as ours; `mean` and `std` [D] of the embeddings are a file beside.

    Raises:
        ValueError: a tensor is missing or left over.
    """
    with torch.device("meta"):
        names = [name for name in DiffusionPrior(config).state_dict() if "clip_" not in name]
    ours = join("prior", {name: (f"model.{_prior_name(name)}",) for name in names}, theirs)
    for name in names:
        if ".qkv." in name:
            ours[name] = _apart(ours[name], 3, config.head_width)
    return {**ours, "clip_mean": mean[None], "clip_std": std[None]}


def decoder_weights(config: DecoderConfig, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their decoder's state dict as ours; `config` has `text_in_time`.

    Raises:
        ValueError: a tensor is missing or left over.
    """
    with torch.device("meta"):
        names = list(Decoder(config).state_dict())
    places = _places(config.unet)
    ties = {}
    for name in names:
        part, _, inner = name.partition(".")
        found = _unet_name(inner, places) if part == "unet" else _conditioner_name(inner)
        ties[name] = (f"model.{found}",)
    ours = join("decoder", ties, theirs)
    for kind in ("weight", "bias"):
        tokens = f"conditioner.image_to_tokens.{kind}"
        ours[tokens] = turned(ours[tokens], config.unet.context_width)
    null = "conditioner.null_image"
    return {**_attention_of(config.unet, ours), null: ours[null][None]}


def upsampler_weights(
    config: UpsamplerConfig,
    theirs: Mapping[str, Tensor],
    steps: Literal["first_steps", "last_step"],
) -> dict[str, Tensor]:
    """One of the two networks in their super-resolution's state dict as ours.

    Raises:
        ValueError: a tensor is missing or left over.
    """
    with torch.device("meta"):
        names = list(UNet(config.unet).state_dict())
    places, prefix = _places(config.unet), f"model_{steps}."
    ties = {f"unet.{name}": (prefix + _unet_name(name, places),) for name in names}
    one = {name: value for name, value in theirs.items() if name.startswith(prefix)}
    return join("upsampler", ties, one)


def _prior_name(name: str) -> str:
    if name in _PRIOR:
        return _PRIOR[name]
    module, _, kind = name.rpartition(".")
    if module in _PRIOR:
        return f"{_PRIOR[module]}.{kind}"
    _, index, layer = module.split(".")
    return f"transformer.resblocks.{index}.{_BLOCK[layer]}.{kind}"


def _conditioner_name(name: str) -> str:
    layer, _, kind = name.partition(".")
    return f"{_CONDITIONER[layer]}.{kind}" if kind else _CONDITIONER[layer]


def _unet_name(name: str, places: Mapping[str, tuple[str, str]]) -> str:
    module, _, kind = name.rpartition(".")
    if module in _UNET:
        return f"{_UNET[module]}.{kind}"
    stage, part, layer = module.rsplit(".", 2)
    residual, attention = places[stage]
    if part == "residual":
        return f"{residual}.{_RESIDUAL[layer]}.{kind}"
    return f"{attention}.{_ATTENTION[layer]}.{kind}"


def _places(config: UNetConfig) -> dict[str, tuple[str, str]]:
    """Our stage → their residual block and attention block.

    A block that makes pictures smaller stands alone there, one that makes them larger ends the
    last block of its level.
    """
    last, levels = len(config.multipliers) - 1, range(len(config.multipliers))
    down = sum(config.blocks + (level < last) for level in levels)
    found = {
        f"down.{index}": (f"input_blocks.{index + 1}.0", f"input_blocks.{index + 1}.1")
        for index in range(down)
    }
    ours = theirs = 0
    for level in reversed(levels):
        for _ in range(config.blocks + 1):
            found[f"up.{ours}"] = (f"output_blocks.{theirs}.0", f"output_blocks.{theirs}.1")
            ours, theirs = ours + 1, theirs + 1
        if level:
            after = 2 if level in config.attention_levels else 1
            found[f"up.{ours}"] = (f"output_blocks.{theirs - 1}.{after}", "")
            ours += 1
    second = 2 if config.attention_levels else 1
    found["middle_in"] = ("middle_block.0", "middle_block.1")
    found["middle_out"] = (f"middle_block.{second}", "")
    return found


def _attention_of(config: UNetConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their convolutions over tokens as linear layers, with the rows in our order."""
    ours = dict(weights)
    for name, value in weights.items():
        if ".attention." not in name or ".norm." in name:
            continue
        parts = 3 if ".qkv." in name else 2 if ".context_kv." in name else 1
        ours[name] = _apart(value[..., 0] if value.dim() == 3 else value, parts, config.head_width)
    return ours


def _apart(rows: Tensor, parts: int, head_width: int) -> Tensor:
    """Rows by (head, part, channel) as rows by (part, head, channel)."""
    width = min(head_width, len(rows) // parts)
    heads = rows.reshape(-1, parts, width, *rows.shape[1:])
    return heads.transpose(0, 1).reshape(rows.shape)
