"""The upsamplers: a U-Net of convolutions only, conditioned on the smaller picture."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .unet import UNet, UNetConfig


@dataclass(frozen=True)
class UpsamplerConfig:
    """The U-Net takes the noised picture and the enlarged smaller one: in_channels is 6."""

    unet: UNetConfig


class Upsampler(nn.Module):
    """Noised picture, timestep and the smaller picture → the network's output.

    Paper section 2.1: no caption, no attention, no guidance; the smaller picture is enlarged
    bicubically and concatenated to the noised one.
    """

    def __init__(self, config: UpsamplerConfig) -> None:
        super().__init__()
        if config.unet.attention_levels:
            raise ValueError(
                f"unet.attention_levels: got {config.unet.attention_levels}, expected none:"
                " an upsampler is convolutions only"
            )
        self.config = config
        self.unet = UNet(config.unet)

    def compute_blocks(self) -> list[nn.Module]:
        """The U-Net's."""
        return self.unet.compute_blocks()

    def forward(self, x_t: Tensor, t: Tensor, enlarged: Tensor) -> Tensor:
        """x_t and enlarged [B, 3, H, W]; t int64 [B]. Returns [B, 3, H, W]."""
        out: Tensor = self.unet(torch.cat([x_t, enlarged.to(x_t.dtype)], dim=1), t)
        return out
