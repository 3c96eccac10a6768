"""The diffusion prior and diffusers' PriorTransformer, in which Karlo's prior is published.

The two are the same function: theirs adds -10000 to the scores of keys that are not seen, ours
takes them out, and what differs at padded positions is seen by no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trainer.models.prior import DiffusionPrior, PriorConfig

from .settings import Kind, expect
from .ties import Ties, join, part

_KIND = Kind(
    "PriorTransformer",
    free={
        "num_attention_heads": 32,
        "attention_head_dim": 64,
        "num_layers": 20,
        "embedding_dim": 768,
        "num_embeddings": 77,
        "dropout": 0.0,
        "time_embed_dim": None,
        "embedding_proj_dim": None,
        "clip_embed_dim": None,
    },
    fixed={
        "additional_embeddings": (4, 4),
        "time_embed_act_fn": ("silu", "silu"),
        "norm_in_type": (None, None),
        "embedding_proj_norm_type": (None, None),
        "encoder_hid_proj_type": ("linear", "linear"),
        "added_emb_type": ("prd", "prd"),
    },
)
_NAMES = {
    "text_states_in": "encoder_hidden_states_proj",
    "text_embedding_in": "embedding_proj",
    "image_in": "proj_in",
    "image_out": "proj_to_clip_embeddings",
    "final_token": "prd_embedding",
    "positions": "positional_embedding",
    "time.first": "time_embedding.linear_1",
    "time.second": "time_embedding.linear_2",
    "norm_out": "norm_out",
    "clip_mean": "clip_mean",
    "clip_std": "clip_std",
}
_BLOCK = {
    "norm_attention": ("norm1",),
    "qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "out": ("attn1.to_out.0",),
    "norm_mlp": ("norm3",),
    "expand": ("ff.net.0.proj",),
    "contract": ("ff.net.2",),
}


def config_from_diffusers(config: Mapping[str, Any]) -> PriorConfig:
    """Read a PriorTransformer's config.

    Raises:
        ValueError: it has what our prior cannot express.
    """
    got = _KIND.read(config)
    width = got["num_attention_heads"] * got["attention_head_dim"]
    dim = got["embedding_dim"]
    optional = {"embedding_proj_dim": dim, "clip_embed_dim": dim, "time_embed_dim": width}
    for name, expected in optional.items():
        expect(f"{_KIND.name}.{name}", got[name] or expected, expected)
    return PriorConfig(
        embedding_dim=dim,
        text_width=dim,
        context_length=got["num_embeddings"],
        layers=got["num_layers"],
        heads=got["num_attention_heads"],
        head_width=got["attention_head_dim"],
        dropout=got["dropout"],
    )


def config_to_diffusers(config: PriorConfig) -> dict[str, Any]:
    """The config of the same PriorTransformer.

    Raises:
        ValueError: its text states are not as wide as its embeddings, which theirs must be.
    """
    expect("text_width", config.text_width, config.embedding_dim)
    return _KIND.write(
        {
            "num_attention_heads": config.heads,
            "attention_head_dim": config.head_width,
            "num_layers": config.layers,
            "embedding_dim": config.embedding_dim,
            "num_embeddings": config.context_length,
            "dropout": config.dropout,
        }
    )


def weights_from_diffusers(config: PriorConfig, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A PriorTransformer's state dict as ours; `config` is ours, of the same sizes.

    Raises:
        ValueError: a tensor is missing or left over.
    """
    return join("prior", _ties(config), theirs)


def weights_to_diffusers(
    config: PriorConfig, ours: Mapping[str, Tensor], embedding_scale: float = 1.0
) -> dict[str, Tensor]:
    """Our state dict as a PriorTransformer's.

    Where ours works on `embedding_scale` · z_i, their mean and deviation lead back to z_i itself.

    Raises:
        ValueError: a tensor is missing or left over.
    """
    theirs = part("prior", _ties(config), ours)
    measured = {name: theirs[name] / embedding_scale for name in ("clip_mean", "clip_std")}
    return {**theirs, **measured}


def _ties(config: PriorConfig) -> Ties:
    with torch.device("meta"):
        return {name: _theirs(name) for name in DiffusionPrior(config).state_dict()}


def _theirs(name: str) -> tuple[str, ...]:
    if name in _NAMES:
        return (_NAMES[name],)
    module, _, kind = name.rpartition(".")
    if module in _NAMES:
        return (f"{_NAMES[module]}.{kind}",)
    _, index, layer = module.split(".")
    return tuple(f"transformer_blocks.{index}.{inner}.{kind}" for inner in _BLOCK[layer])
