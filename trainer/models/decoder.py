"""The decoder: a U-Net conditioned on CLIP's image embedding and on the caption."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .unet import UNet, UNetConfig


@dataclass(frozen=True)
class DecoderConfig:
    """`embedding_dim` is CLIP's, `text_width` that of the text encoder's token states.

    `text_in_time` adds a projection of z_t to the timestep embedding, as Karlo does.
    """

    unet: UNetConfig
    embedding_dim: int
    text_width: int
    image_tokens: int = 4
    text_in_time: bool = False


class Conditioner(nn.Module):
    """Paper section 2.1: z_i is projected and added to the timestep embedding, and projected into
    four extra tokens that are appended to the text encoder's output sequence.

    A dropped z_i is replaced with a learned embedding (the null of classifier-free guidance).
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        width = config.unet.context_width
        self.image_tokens = config.image_tokens
        self.null_image = nn.Parameter(torch.zeros(1, config.embedding_dim))
        self.image_to_time = nn.Linear(config.embedding_dim, config.unet.time_width)
        self.image_to_tokens = nn.Linear(config.embedding_dim, config.image_tokens * width)
        self.text_in = nn.Linear(config.text_width, width)
        self.text_norm = nn.LayerNorm(width)
        self.text_to_time = (
            nn.Linear(config.embedding_dim, config.unet.time_width) if config.text_in_time else None
        )

    def forward(
        self,
        image_embedding: Tensor,
        keep_image: Tensor,
        text_states: Tensor,
        text_mask: Tensor,
        text_embedding: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the U-Net takes: time condition [B, T], context [B, L + 4, W], mask [B, L + 4]."""
        dtype = self.text_in.weight.dtype
        z = torch.where(keep_image[:, None], image_embedding.to(dtype), self.null_image)  # [B, D]
        text = self.text_norm(self.text_in(text_states.to(dtype)))
        image = self.image_to_tokens(z).unflatten(1, (self.image_tokens, -1))
        mask = nn.functional.pad(text_mask, (0, self.image_tokens), value=True)
        time = self.image_to_time(z)
        if self.text_to_time is not None:
            if text_embedding is None:
                raise ValueError("text_embedding: got None, expected z_t, since text_in_time is on")
            time = time + self.text_to_time(text_embedding.to(dtype))
        return time, torch.cat([text, image], dim=1), mask


class Decoder(nn.Module):
    """Noised picture, timestep, z_i and caption → the network's output."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.conditioner = Conditioner(config)
        self.unet = UNet(config.unet)

    def compute_blocks(self) -> list[nn.Module]:
        """The U-Net's."""
        return self.unet.compute_blocks()

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        image_embedding: Tensor,
        keep_image: Tensor,
        text_states: Tensor,
        text_mask: Tensor,
        text_embedding: Tensor | None = None,
    ) -> Tensor:
        """x_t [B, 3, H, W]; t int64 [B]; image_embedding [B, D], scaled; keep_image bool [B];
        text_states [B, L, W]; text_mask bool [B, L]; text_embedding [B, D], for `text_in_time`.
        Returns [B, Cout, H, W].
        """
        condition = self.conditioner(
            image_embedding, keep_image, text_states, text_mask, text_embedding
        )
        out: Tensor = self.unet(x_t, t, *condition)
        return out
