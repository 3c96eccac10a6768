"""Our three networks and diffusers' of the same architecture and weights, and inputs for both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import PriorTransformer, UNet2DConditionModel, UNet2DModel
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.interop import decoder, prior, upsampler
from trainer.models.decoder import Decoder, DecoderConfig
from trainer.models.prior import DiffusionPrior, PriorConfig
from trainer.models.unet import UNetConfig
from trainer.models.upsampler import Upsampler, UpsamplerConfig

PRIOR = PriorConfig(embedding_dim=512, text_width=512, layers=8, heads=8)
_UNET = UNetConfig(channels=64, multipliers=(1, 2, 3, 4), norm_groups=32)
DECODER = DecoderConfig(
    replace(_UNET, out_channels=6, attention_levels=(1, 2, 3), context_width=512),
    embedding_dim=512,
    text_width=512,
    text_in_time=True,
)
UPSAMPLER = UpsamplerConfig(replace(_UNET, in_channels=6, scale_shift=False))


@dataclass(frozen=True)
class Twins:
    """Two modules, each with a call of (module, inputs) → output."""

    ours: nn.Module
    theirs: nn.Module
    call_ours: Callable[[nn.Module, Mapping[str, Tensor]], Tensor]
    call_theirs: Callable[[nn.Module, Mapping[str, Tensor]], Tensor]


def widened(config: UNetConfig, channels: int) -> UNetConfig:
    """The same U-Net with another number of channels, in heads that divide every level's."""
    return replace(config, channels=channels, head_width=channels if channels <= 64 else 48)


def priors(config: PriorConfig) -> Twins:
    """Ours, and a PriorTransformer."""
    ours = _shaken(DiffusionPrior(config))
    theirs = PriorTransformer.from_config(prior.config_to_diffusers(config))
    theirs.load_state_dict(prior.weights_to_diffusers(config, ours.state_dict()))

    def call(module: nn.Module, given: Mapping[str, Tensor]) -> Tensor:
        return module(
            given["x_t"],
            given["t"],
            proj_embedding=given["text_embedding"],
            encoder_hidden_states=given["text_states"],
            attention_mask=given["text_mask"],
        ).predicted_image_embedding

    return Twins(ours, theirs, _named, call)


class TheirDecoder(nn.Module):
    """diffusers' two halves of a decoder, called as its pipeline does."""

    def __init__(self, network: UNet2DConditionModel, projections: UnCLIPTextProjModel) -> None:
        super().__init__()
        self.network, self.projections = network, projections

    def forward(self, given: Mapping[str, Tensor]) -> Tensor:
        """As our decoder's, by the names of its arguments."""
        states, time = self.projections(
            image_embeddings=given["image_embedding"],
            prompt_embeds=given["text_embedding"],
            text_encoder_hidden_states=given["text_states"],
            do_classifier_free_guidance=False,
        )
        tokens = self.projections.clip_extra_context_tokens
        mask = F.pad(given["text_mask"], (tokens, 0), value=True)
        out: Tensor = self.network(
            given["x_t"],
            given["t"],
            encoder_hidden_states=states,
            class_labels=time,
            attention_mask=mask,
        ).sample
        return out


def decoders(config: DecoderConfig, side: int) -> Twins:
    """Ours, and a UNet2DConditionModel with a UnCLIPTextProjModel."""
    ours = _shaken(Decoder(config))
    kinds = (UNet2DConditionModel, UnCLIPTextProjModel)
    configs = decoder.config_to_diffusers(config, side)
    weights = decoder.weights_to_diffusers(config, ours.state_dict())
    theirs = TheirDecoder(*map(_built, kinds, configs, weights))
    return Twins(ours, theirs, _named, lambda module, given: module(given))


def upsamplers(config: UpsamplerConfig, side: int) -> Twins:
    """Ours, and a UNet2DModel."""
    ours = _shaken(Upsampler(config))
    weights = upsampler.weights_to_diffusers(config, ours.state_dict())
    theirs = _built(UNet2DModel, upsampler.config_to_diffusers(config, side), weights)

    def call(module: nn.Module, given: Mapping[str, Tensor]) -> Tensor:
        out: Tensor = module(torch.cat([given["x_t"], given["enlarged"]], dim=1), given["t"]).sample
        return out

    return Twins(ours, theirs, _named, call)


def caption_inputs(batch: int, lengths: Tensor, width: int = 512) -> dict[str, Tensor]:
    """What both networks of captions take; lengths int64 [B], of 77 places."""
    return {
        "t": torch.randint(1000, (batch,)),
        "text_states": torch.randn(batch, 77, width),
        "text_mask": torch.arange(77) < lengths[:, None],
        "text_embedding": torch.randn(batch, width),
    }


def _named(module: nn.Module, given: Mapping[str, Tensor]) -> Tensor:
    out: Tensor = module(**given)
    return out


def _built(kind: Any, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> nn.Module:
    module: nn.Module = kind.from_config(config)
    module.load_state_dict(weights)
    return module


def _shaken(module: nn.Module) -> nn.Module:
    """No branch is zero any more, or half of the backward pass would be of zeros."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return module
