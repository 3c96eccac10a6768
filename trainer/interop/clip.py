"""CLIP as transformers has it (CLIPTextModelWithProjection, CLIPVisionModelWithProjection) and as
open_clip has it, in which all of ours are.

The two are the same function; transformers keeps query, key and value apart, and projections as
linear layers where open_clip multiplies by a matrix. A folder may hold the text tower alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .settings import Kind, expect
from .ties import Ties, join, part

_FIXED: Mapping[str, tuple[Any, Any]] = {
    "layer_norm_eps": (1e-5, 1e-5),
    "attention_dropout": (0.0, 0.0),
}
_TEXT = Kind(
    "CLIPTextModelWithProjection",
    free={
        "vocab_size": 49408,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "max_position_embeddings": 77,
        "eos_token_id": 49407,
        "hidden_act": "quick_gelu",
    },
    fixed=_FIXED,
)
_VISION = Kind(
    "CLIPVisionModelWithProjection",
    free={
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 32,
        "hidden_act": "quick_gelu",
    },
    fixed={"num_channels": (3, 3), **_FIXED},
)
_GELU = {"quick_gelu": True, "gelu": False}
_LOGIT_SCALE = math.log(100)  # CLIP's own at the end of its training; of no use without training
# open_clip's fields that a plain tower has at these values alone.
_PLAIN_TEXT = {"pool_type": "argmax", "proj_type": "linear", "hf_model_name": None}
_PLAIN_VISION = {"pool_type": "tok", "pos_embed_type": "learnable", "timm_model_name": None}
# Settings of towers of another kind, or of training.
_HARMLESS = frozenset(
    (
        *("patch_dropout", "attn_pooler_queries", "attn_pooler_heads", "timm_pool", "timm_proj"),
        *("timm_drop", "eos_id", "pad_id", "hf_model_pretrained", "hf_proj_type"),
        *("hf_pooler_type", "hf_tokenizer_name"),
    )
)
_TEXT_SIZES: Mapping[str, Any] = {
    "context_length": 77,
    "vocab_size": 49408,
    "width": 512,
    "heads": 8,
    "layers": 12,
    "mlp_ratio": 4.0,
}
_VISION_SIZES: Mapping[str, Any] = {
    "image_size": 224,
    "patch_size": 16,
    "width": 768,
    "layers": 12,
    "head_width": 64,
    "mlp_ratio": 4.0,
}
_BLOCK = {
    "ln_1": ("layer_norm1",),
    "attn.in_proj_": ("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj."),
    "attn.out_proj": ("self_attn.out_proj",),
    "ln_2": ("layer_norm2",),
    "mlp.c_fc": ("mlp.fc1",),
    "mlp.c_proj": ("mlp.fc2",),
}


def config_from_transformers(
    text: Mapping[str, Any], vision: Mapping[str, Any] | None, dim: int
) -> dict[str, Any]:
    """open_clip's `model_cfg` of the configs of both towers; `dim` is the embeddings'.

    Without `vision` it has no `vision_cfg`: the text tower alone.

    Raises:
        ValueError: they have what open_clip's towers cannot express.
    """
    got = _TEXT.read(_relevant(_TEXT, text))
    width = got["hidden_size"]
    found: dict[str, Any] = {
        "embed_dim": dim,
        "quick_gelu": _quick_gelu(_TEXT.name, got),
        "text_cfg": {
            "context_length": got["max_position_embeddings"],
            "vocab_size": got["vocab_size"],
            "width": width,
            "heads": got["num_attention_heads"],
            "layers": got["num_hidden_layers"],
            "mlp_ratio": got["intermediate_size"] / width,
        },
    }
    if got["eos_token_id"] not in (2, got["vocab_size"] - 1):  # 2: files of before, with argmax
        expected = got["vocab_size"] - 1
        raise ValueError(
            f"{_TEXT.name}.eos_token_id: got {got['eos_token_id']}, expected {expected}"
        )
    if vision is None:
        return found
    seen = _VISION.read(_relevant(_VISION, vision))
    width, heads = seen["hidden_size"], seen["num_attention_heads"]
    expect(f"{_VISION.name}.hidden_act", seen["hidden_act"], got["hidden_act"])
    found["vision_cfg"] = {
        "image_size": seen["image_size"],
        "patch_size": seen["patch_size"],
        "width": width,
        "layers": seen["num_hidden_layers"],
        "head_width": width // heads,
        "mlp_ratio": seen["intermediate_size"] / width,
    }
    return found


def config_to_transformers(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configs of both towers of open_clip's `model_cfg`; the second empty where there is none.

    Raises:
        ValueError: transformers' cannot express them.
    """
    sizes = _plain("text_cfg", config["text_cfg"], _PLAIN_TEXT, _TEXT_SIZES)
    act = {True: "quick_gelu", False: "gelu"}[bool(config.get("quick_gelu", False))]
    dim, width = config["embed_dim"], sizes["width"]
    text = {
        **_TEXT.write({}),
        "vocab_size": sizes["vocab_size"],
        "hidden_size": width,
        "intermediate_size": int(width * sizes["mlp_ratio"]),
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "max_position_embeddings": sizes["context_length"],
        "eos_token_id": sizes["vocab_size"] - 1,
        "bos_token_id": sizes["vocab_size"] - 2,
        "pad_token_id": 1,
        "hidden_act": act,
        "projection_dim": dim,
    }
    vision: dict[str, Any] = {}
    if has_vision(config):
        seen = _plain("vision_cfg", config["vision_cfg"], _PLAIN_VISION, _VISION_SIZES)
        width = seen["width"]
        vision = {
            **_VISION.write({}),
            "hidden_size": width,
            "intermediate_size": int(width * seen["mlp_ratio"]),
            "num_hidden_layers": seen["layers"],
            "num_attention_heads": width // seen["head_width"],
            "image_size": seen["image_size"],
            "patch_size": seen["patch_size"],
            "hidden_act": act,
            "projection_dim": dim,
        }
    return _as_file(text, "clip_text_model"), _as_file(vision, "clip_vision_model")


def has_vision(config: Mapping[str, Any]) -> bool:
    """Whether a `model_cfg` has a vision tower that transformers' CLIP knows: no ResNet."""
    vision = config.get("vision_cfg")
    return vision is not None and not isinstance(vision.get("layers"), (list, tuple))


def weights_from_transformers(
    config: Mapping[str, Any], text: Mapping[str, Tensor], vision: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    """The state dicts of both towers as open_clip's; `config` as `config_from_transformers` gives.

    Raises:
        ValueError: a tensor is missing or left over.
    """
    ours = join("text_encoder", _text_ties(config), _without_places(text))
    ours["text_projection"] = ours["text_projection"].T.contiguous()
    if vision is None:
        return ours
    seen = join("image_encoder", _vision_ties(config), _without_places(vision))
    seen["visual.proj"] = seen["visual.proj"].T.contiguous()
    return {**ours, **seen, "logit_scale": torch.tensor(_LOGIT_SCALE)}


def weights_to_transformers(
    config: Mapping[str, Any], ours: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """open_clip's state dict as those of both towers; the second empty where there is none.

    Raises:
        ValueError: a tensor is missing or left over.
    """
    own = {name: value for name, value in ours.items() if not name.startswith("visual.")}
    own = {name: value for name, value in own.items() if name not in ("logit_scale", "attn_mask")}
    own["text_projection"] = own["text_projection"].T
    text = part("text_encoder", _text_ties(config), own)
    if not has_vision(config):
        return text, {}
    seen = {name: value for name, value in ours.items() if name.startswith("visual.")}
    seen["visual.proj"] = seen["visual.proj"].T
    return text, part("image_encoder", _vision_ties(config), seen)


def _text_ties(config: Mapping[str, Any]) -> Ties:
    at = "text_model"
    return {
        "token_embedding.weight": (f"{at}.embeddings.token_embedding.weight",),
        "positional_embedding": (f"{at}.embeddings.position_embedding.weight",),
        **_blocks("transformer", at, config["text_cfg"]["layers"]),
        **_norms({"ln_final": f"{at}.final_layer_norm"}),
        "text_projection": ("text_projection.weight",),
    }


def _vision_ties(config: Mapping[str, Any]) -> Ties:
    at = "vision_model"
    return {
        "visual.class_embedding": (f"{at}.embeddings.class_embedding",),
        "visual.conv1.weight": (f"{at}.embeddings.patch_embedding.weight",),
        "visual.positional_embedding": (f"{at}.embeddings.position_embedding.weight",),
        **_norms({"visual.ln_pre": f"{at}.pre_layrnorm", "visual.ln_post": f"{at}.post_layernorm"}),
        **_blocks("visual.transformer", at, config["vision_cfg"]["layers"]),
        "visual.proj": ("visual_projection.weight",),
    }


def _blocks(ours: str, theirs: str, layers: int) -> Ties:
    return {
        f"{ours}.resblocks.{index}.{_joined(name, kind)}": tuple(
            f"{theirs}.encoder.layers.{index}.{_joined(each, kind)}" for each in parts
        )
        for index in range(layers)
        for name, parts in _BLOCK.items()
        for kind in ("weight", "bias")
    }


def _joined(name: str, kind: str) -> str:
    return f"{name}{kind}" if name[-1] in "._" else f"{name}.{kind}"


def _norms(names: Mapping[str, str]) -> Ties:
    return {
        f"{ours}.{kind}": (f"{theirs}.{kind}",)
        for ours, theirs in names.items()
        for kind in ("weight", "bias")
    }


def _without_places(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Files of earlier versions have the numbers of places, which are no weights."""
    return {name: value for name, value in weights.items() if not name.endswith("position_ids")}


def _relevant(kind: Kind, config: Mapping[str, Any]) -> dict[str, Any]:
    """What makes the network; files of transformers tell much of training and generation beside."""
    return {name: config[name] for name in (*kind.free, *kind.fixed) if name in config}


def _quick_gelu(kind: str, got: Mapping[str, Any]) -> bool:
    act = got["hidden_act"]
    if act not in _GELU:
        raise ValueError(f"{kind}.hidden_act: got {act!r}, expected {' or '.join(_GELU)}")
    return _GELU[act]


def _plain(
    section: str, got: Mapping[str, Any], plain: Mapping[str, Any], sizes: Mapping[str, Any]
) -> dict[str, Any]:
    """The sizes of one tower of open_clip's, defaults filled in.

    Raises:
        ValueError: it has a setting that transformers' CLIP knows nothing of.
    """
    for name, value in got.items():
        if name in plain:
            expect(f"{section}.{name}", value, plain[name])
        elif name not in sizes and name not in _HARMLESS and value not in (None, False):
            raise ValueError(f"{section}.{name}: got {value!r}, which transformers' CLIP lacks")
    return {name: got.get(name, default) for name, default in sizes.items()}


def _as_file(config: dict[str, Any], model_type: str) -> dict[str, Any]:
    """A config as transformers' config.json has it."""
    name = config.pop("_class_name", None)
    return {"architectures": [name], "model_type": model_type, **config} if name else {}
