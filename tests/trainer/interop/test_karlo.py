"""Karlo's networks as diffusers publishes them, at their size, without a byte of weights."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import PriorTransformer, UNet2DConditionModel, UNet2DModel
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from torch import Tensor, nn
from torch.nn import functional as F

from base import yaml
from base.config import parse_config
from trainer.config import LoopConfig, TrainConfig
from trainer.diffusion.degradations import enlarge
from trainer.interop import decoder, prior, upsampler
from trainer.models.decoder import Decoder
from trainer.models.prior import DiffusionPrior
from trainer.models.upsampler import Upsampler
from trainer.stages import STAGES

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "karlo"
DOWN, UP = "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"
PRIOR = {"num_attention_heads": 32, "attention_head_dim": 64, "num_layers": 20}
DECODER: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 3,
    "out_channels": 6,
    "down_block_types": [DOWN, *["SimpleCrossAttnDownBlock2D"] * 3],
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": [*["SimpleCrossAttnUpBlock2D"] * 3, UP],
    "block_out_channels": [320, 640, 960, 1280],
    "layers_per_block": 3,
    "cross_attention_dim": 1536,
    "attention_head_dim": 64,
    "class_embed_type": "identity",
    "resnet_time_scale_shift": "scale_shift",
}
TEXT_PROJ = {"time_embed_dim": 1280, "cross_attention_dim": 1536}
SUPER: dict[str, Any] = {
    "sample_size": 256,
    "in_channels": 6,
    "out_channels": 3,
    "down_block_types": [DOWN] * 4,
    "up_block_types": [UP] * 4,
    "block_out_channels": [320, 640, 960, 1280],
    "layers_per_block": 3,
    "add_attention": False,
    "resnet_time_scale_shift": "default",
}


def model_section(name: str) -> Any:
    """The model of one of configs/karlo."""
    text = (CONFIGS / f"{name}.yaml").read_text()
    values, _ = yaml.parse(text, name)
    stage = STAGES[values["stage"]]
    kind: Any = TrainConfig[stage.model, dict[str, Any]]  # type: ignore[name-defined]
    loop = LoopConfig(samples=1, batch=1).model_dump()
    return parse_config({**values, "train": loop}, kind, name).model


def shapes(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in weights.items()}


def built(kind: Any, config: Mapping[str, Any]) -> dict[str, Tensor]:
    with torch.device("meta"):
        module: nn.Module = kind(**config)
        return module.state_dict()


def ours(kind: Any, config: object) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return shapes(kind(config).state_dict())


def test_prior() -> None:
    config = prior.config_from_diffusers(PRIOR)
    assert config == model_section("prior")
    theirs = built(PriorTransformer, PRIOR)
    assert sum(value.numel() for value in theirs.values()) == 1_022_030_080
    weights = prior.weights_from_diffusers(config, theirs)
    assert shapes(weights) == ours(DiffusionPrior, config)


def test_decoder() -> None:
    config = decoder.config_from_diffusers(DECODER, TEXT_PROJ)
    section = model_section("decoder")
    assert section == replace(config, unet=replace(config.unet, dropout=0.1))  # of training alone
    network, projections = (
        built(kind, values)
        for kind, values in ((UNet2DConditionModel, DECODER), (UnCLIPTextProjModel, TEXT_PROJ))
    )
    assert sum(value.numel() for value in network.values()) == 885_439_686
    assert sum(value.numel() for value in projections.values()) == 7_878_400
    weights = decoder.weights_from_diffusers(config, network, projections)
    assert shapes(weights) == ours(Decoder, config)


def test_super_resolution() -> None:
    config = upsampler.config_from_diffusers(SUPER)
    assert config == model_section("up256") == model_section("up256_last")
    theirs = built(UNet2DModel, SUPER)
    assert sum(value.numel() for value in theirs.values()) == 691_579_523
    weights = upsampler.weights_from_diffusers(config, theirs)
    assert shapes(weights) == ours(Upsampler, config)


def test_small_pictures_are_enlarged_as_in_their_pipeline() -> None:
    torch.manual_seed(0)
    small = torch.randn(1, 3, 8, 8)
    theirs = F.interpolate(
        small, size=[32, 32], mode="bicubic", align_corners=False, antialias=True
    )
    torch.testing.assert_close(enlarge(small, 4, antialias=True), theirs)
    assert not torch.allclose(enlarge(small, 4), theirs, atol=1e-2)
