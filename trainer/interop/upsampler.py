"""The upsampler and diffusers' UNet2DModel without attention, which Karlo's super-resolution is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from trainer.models.unet import UNetConfig
from trainer.models.upsampler import UpsamplerConfig

from . import unet
from .settings import Kind, expect
from .ties import Ties, join, part

_DOWN, _UP = "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"
_KIND = Kind(
    "UNet2DModel",
    free={
        **unet.FREE,
        "in_channels": 3,
        "out_channels": 3,
        "downsample_type": "conv",  # these three say nothing to networks of residual blocks
        "upsample_type": "conv",
        "attention_head_dim": 8,
    },
    fixed={
        **unet.FIXED,
        "mid_block_type": ("UNetMidBlock2D", "UNetMidBlock2D"),
        "add_attention": (True, False),
        "attn_norm_num_groups": (None, None),
        "class_embed_type": (None, None),
        "num_train_timesteps": (None, None),
    },
)


def config_from_diffusers(config: Mapping[str, Any]) -> UpsamplerConfig:
    """Read a UNet2DModel's config.

    Raises:
        ValueError: it has what our upsampler cannot express.
    """
    got = _KIND.read(config)
    levels = len(got["block_out_channels"])
    for name, block in (("down_block_types", _DOWN), ("up_block_types", _UP)):
        expect(f"{_KIND.name}.{name}", got[name], (block,) * levels)
    sizes = unet.sizes_from(_KIND.name, got)
    return UpsamplerConfig(
        UNetConfig(in_channels=got["in_channels"], out_channels=got["out_channels"], **sizes)
    )


def config_to_diffusers(config: UpsamplerConfig, sample_size: int) -> dict[str, Any]:
    """The config of the same UNet2DModel; `sample_size` is the side of the larger picture.

    Raises:
        ValueError: theirs cannot express it.
    """
    levels = len(config.unet.multipliers)
    return _KIND.write(
        {
            **unet.sizes_to(config.unet, sample_size),
            "down_block_types": [_DOWN] * levels,
            "up_block_types": [_UP] * levels,
        }
    )


def weights_from_diffusers(
    config: UpsamplerConfig, theirs: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A UNet2DModel's state dict as ours; `config` is ours, of the same sizes.

    Raises:
        ValueError: a tensor is missing or left over.
    """
    return join("upsampler", _ties(config), theirs)


def weights_to_diffusers(config: UpsamplerConfig, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict as a UNet2DModel's.

    Raises:
        ValueError: a tensor is missing or left over.
    """
    return part("upsampler", _ties(config), ours)


def _ties(config: UpsamplerConfig) -> Ties:
    return {f"unet.{name}": theirs for name, theirs in unet.ties(config.unet).items()}
