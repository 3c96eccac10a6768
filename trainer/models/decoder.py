"""The decoder: a U-Net conditioned on CLIP's image embedding and on the caption."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .text_transformer import TextTransformer, TextTransformerConfig
from .unet import UNet, UNetConfig


@dataclass(frozen=True)
class DecoderConfig:
    """`embedding_dim` is CLIP's, `text_width` that of its text encoder's token states.

    The caption's tokens are read by that frozen encoder, as in Karlo, or by a transformer of the
    decoder's own, `text`, as in GLIDE and the paper. `text_in_time` adds a projection of z_t to the
    timestep embedding, as Karlo does.
    """

    unet: UNetConfig
    embedding_dim: int
    text_width: int
    image_tokens: int = 4
    text_in_time: bool = False
    text: TextTransformerConfig | None = None


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
        text_width = config.text_width if config.text is None else config.text.width
        self.text_in = nn.Linear(text_width, width)
        self.text_norm = nn.LayerNorm(width)
        self.text_to_time = (
            nn.Linear(config.embedding_dim, config.unet.time_width) if config.text_in_time else None
        )
        self.last_to_time = nn.Linear(text_width, config.unet.time_width) if config.text else None

    def forward(
        self,
        image_embedding: Tensor,
        keep_image: Tensor,
        text_states: Tensor,
        text_mask: Tensor,
        text_embedding: Tensor | None = None,
        text_last: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the U-Net takes: time condition [B, T], context [B, L + 4, W], mask [B, L + 4].

        `text_last` is what the decoder's own reader of captions says of the whole.
        """
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
        if self.last_to_time is not None:
            assert text_last is not None
            time = time + self.last_to_time(text_last)
        return time, torch.cat([text, image], dim=1), mask


class Decoder(nn.Module):
    """Noised picture, timestep, z_i and caption → the network's output."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.conditioner = Conditioner(config)
        self.unet = UNet(config.unet)
        self.text = None if config.text is None else TextTransformer(config.text)

    def compute_blocks(self) -> list[nn.Module]:
        """The U-Net's, after those of its own reader of captions."""
        reader = [] if self.text is None else list(self.text.blocks)
        return [*reader, *self.unet.compute_blocks()]

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        image_embedding: Tensor,
        keep_image: Tensor,
        text_states: Tensor,
        text_mask: Tensor,
        text_embedding: Tensor | None = None,
        tokens: Tensor | None = None,
    ) -> Tensor:
        """x_t [B, 3, H, W]; t int64 [B]; the rest as for `conditions`. Returns [B, Cout, H, W]."""
        conditions = self.conditions(
            image_embedding, keep_image, text_states, text_mask, text_embedding, tokens
        )
        out: Tensor = self.unet(x_t, t, *conditions)
        return out

    def conditions(
        self,
        image_embedding: Tensor,
        keep_image: Tensor,
        text_states: Tensor,
        text_mask: Tensor,
        text_embedding: Tensor | None = None,
        tokens: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the U-Net takes beside x_t and t, and so the same at every step of a sampler.

        image_embedding [B, D], scaled; keep_image bool [B]; text_states [B, L, W]; text_mask bool
        [B, L]; text_embedding [B, D], for `text_in_time`; tokens int64 [B, L'], for `text`, which
        reads them in place of the states.
        """
        last = None
        if self.text is not None:
            if tokens is None:
                raise ValueError("tokens: got None, expected the caption's, which `text` reads")
            text_states, last = self.text(tokens)
            text_mask = torch.ones_like(tokens, dtype=torch.bool)
        conditions: tuple[Tensor, Tensor, Tensor] = self.conditioner(
            image_embedding, keep_image, text_states, text_mask, text_embedding, last
        )
        return conditions
