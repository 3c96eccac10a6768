"""The U-Net of the decoder and the upsamplers (ADM, Dhariwal & Nichol 2021, with GLIDE's text).

Residual blocks move between resolutions; attention blocks, where there are any, look at the text
tokens and at the picture together, as in GLIDE and Karlo. Without attention and conditions it is
the upsampler of paper appendix C: convolutions only, applicable at any resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import attention
from .embeddings import TimestepMLP

_GROUPS = 32


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of a U-Net. `attention` names side lengths divided by 2^level: 0 is full size.

    `context_width` is the width of the tokens that attention sees beside the picture (0: none).
    `patch` folds patch × patch pixels into channels at the entry: 1 in the paper, 2 makes the
    largest level four times cheaper. `norm_groups` is the number of groups of every group norm
    (Karlo and diffusers: 32); None: 32, or as many groups of four channels as a small net has.
    """

    in_channels: int = 3
    out_channels: int = 3
    channels: int = 320
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    blocks: int = 3
    attention_levels: tuple[int, ...] = ()
    head_width: int = 64
    context_width: int = 0
    scale_shift: bool = True
    dropout: float = 0.0
    patch: int = 1
    norm_groups: int | None = None

    @property
    def time_width(self) -> int:
        return 4 * self.channels


def group_count(channels: int, config: UNetConfig) -> int:
    """Groups of the group norm over so many channels."""
    if config.norm_groups is None:
        if channels % _GROUPS == 0 and channels >= 4 * _GROUPS:
            return _GROUPS
        return next(count for count in range(max(channels // 4, 1), 0, -1) if channels % count == 0)
    if channels % config.norm_groups:
        raise ValueError(
            f"norm_groups: got {config.norm_groups}, expected a divisor of a level's {channels}"
        )
    return config.norm_groups


def _norm(channels: int, config: UNetConfig) -> nn.GroupNorm:
    return nn.GroupNorm(group_count(channels, config), channels)


def _zeroed(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """Zero a residual branch's last layer, so that the branch begins as the identity."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class ResBlock(nn.Module):
    """GN, SiLU, [resize], conv; + time; GN, SiLU, dropout, conv; + skip. [B, C, H, W]."""

    def __init__(self, cin: int, cout: int, config: UNetConfig, resize: str | None = None) -> None:
        super().__init__()
        self.resize = resize
        self.scale_shift = config.scale_shift
        self.norm_in = _norm(cin, config)
        self.conv_in = nn.Conv2d(cin, cout, 3, padding=1)
        self.time = nn.Linear(config.time_width, 2 * cout if config.scale_shift else cout)
        self.norm_out = _norm(cout, config)
        self.dropout = nn.Dropout(config.dropout)
        self.conv_out = _zeroed(nn.Conv2d(cout, cout, 3, padding=1))
        self.skip = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()

    def _resized(self, x: Tensor) -> Tensor:
        if self.resize == "down":
            return F.avg_pool2d(x, 2)
        if self.resize == "up":
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        return x

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        hidden = self.conv_in(self._resized(F.silu(self.norm_in(x))))
        shift = self.time(F.silu(time))[:, :, None, None]  # [B, C or 2C, 1, 1]
        if self.scale_shift:
            scale, shift = shift.chunk(2, dim=1)
            hidden = self.norm_out(hidden) * (1 + scale) + shift
        else:
            hidden = self.norm_out(hidden + shift)
        hidden = self.conv_out(self.dropout(F.silu(hidden)))
        out: Tensor = self.skip(self._resized(x)) + hidden
        return out


class AttentionBlock(nn.Module):
    """Self-attention over the pixels, with the context tokens as further keys and values."""

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.head_width = min(config.head_width, channels)
        if channels % self.head_width:
            raise ValueError(
                f"head_width: got {config.head_width}, "
                f"expected a divisor of the {channels} channels of a level with attention"
            )
        self.norm = _norm(channels, config)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.context_kv = (
            nn.Linear(config.context_width, 2 * channels) if config.context_width else None
        )
        self.out = _zeroed(nn.Linear(channels, channels))

    def _heads(self, x: Tensor) -> Tensor:
        """[B, N, C] → [B, heads, N, head width]."""
        return x.view(*x.shape[:2], -1, self.head_width).transpose(1, 2)

    def forward(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        b, c, h, w = x.shape
        pixels = self.norm(x).flatten(2).transpose(1, 2)  # [B, H*W, C]
        q, k, v = map(self._heads, self.qkv(pixels).chunk(3, dim=2))
        seen = None
        if self.context_kv is not None and context is not None:
            context_k, context_v = map(self._heads, self.context_kv(context).chunk(2, dim=2))
            k, v = torch.cat([context_k, k], dim=2), torch.cat([context_v, v], dim=2)
            if mask is not None:
                seen = F.pad(mask, (0, h * w), value=True)[:, None, None, :]  # [B, 1, 1, L + HW]
        attended = attention(q, k, v, seen)
        tokens: Tensor = self.out(attended.transpose(1, 2).reshape(b, h * w, c))
        return x + tokens.transpose(1, 2).contiguous().view(b, c, h, w)


class _Stage(nn.Module):
    """A residual block and, at the levels that have it, attention."""

    def __init__(
        self, cin: int, cout: int, config: UNetConfig, attends: bool, resize: str | None = None
    ) -> None:
        super().__init__()
        self.residual = ResBlock(cin, cout, config, resize)
        self.attention = AttentionBlock(cout, config) if attends else None

    def forward(
        self, x: Tensor, time: Tensor, context: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        x = self.residual(x, time)
        return x if self.attention is None else self.attention(x, context, mask)


class UNet(nn.Module):
    """Noised picture, timestep and conditions → the network's output, in the picture's shape."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.channels_last = False  # pictures inside; weights may stay as they are
        fold = config.patch**2
        self.time = TimestepMLP(config.channels, config.time_width)
        self.conv_in = nn.Conv2d(config.in_channels * fold, config.channels, 3, padding=1)
        self.down, widths = self._build_down(config)
        width = widths[-1]
        has_attention = bool(config.attention_levels)
        self.middle_in = _Stage(width, width, config, has_attention)
        self.middle_out = _Stage(width, width, config, False)
        self.up = self._build_up(config, widths)
        self.norm_out = _norm(config.channels * config.multipliers[0], config)
        self.conv_out = _zeroed(
            nn.Conv2d(
                config.channels * config.multipliers[0], config.out_channels * fold, 3, padding=1
            )
        )

    @staticmethod
    def _build_down(config: UNetConfig) -> tuple[nn.ModuleList, list[int]]:
        stages, widths = nn.ModuleList(), [config.channels]
        last = len(config.multipliers) - 1
        for level, multiplier in enumerate(config.multipliers):
            attends = level in config.attention_levels
            for _ in range(config.blocks):
                stages.append(_Stage(widths[-1], multiplier * config.channels, config, attends))
                widths.append(multiplier * config.channels)
            if level != last:
                stages.append(_Stage(widths[-1], widths[-1], config, False, "down"))
                widths.append(widths[-1])
        return stages, widths

    @staticmethod
    def _build_up(config: UNetConfig, skips: Sequence[int]) -> nn.ModuleList:
        """`skips` are the widths that the way down leaves, in its order."""
        stages, remaining, width = nn.ModuleList(), list(skips), skips[-1]
        for level in reversed(range(len(config.multipliers))):
            cout = config.multipliers[level] * config.channels
            attends = level in config.attention_levels
            for _ in range(config.blocks + 1):
                stages.append(_Stage(width + remaining.pop(), cout, config, attends))
                width = cout
            if level:
                stages.append(_Stage(width, width, config, False, "up"))
        return stages

    def compute_blocks(self) -> list[nn.Module]:
        """Where nearly all the work and the activations are, one by one."""
        return [*self.down, self.middle_in, self.middle_out, *self.up]

    def _memory_format(self) -> torch.memory_format:
        """The model decides, not the caller's picture: channels_last is what a GPU's convolutions
        want, and on a CPU bf16 group norms are slower in it (benchmarks/memory_format.py)."""
        weight = self.conv_in.weight
        last = weight.is_contiguous(memory_format=torch.channels_last)
        if self.channels_last or (last and not weight.is_contiguous()):
            return torch.channels_last
        return torch.contiguous_format

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        time_condition: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """x [B, Cin, H, W]; t int64 [B]; time_condition [B, 4 · channels] is added to the time
        embedding; context [B, L, context_width] with context_mask bool [B, L] (True: real).

        H and W are multiples of patch · 2^(levels - 1). Returns [B, Cout, H, W].
        """
        dtype = self.conv_in.weight.dtype
        time = self.time(t)
        if time_condition is not None:
            time = time + time_condition
        hidden = F.pixel_unshuffle(x.to(dtype), self.config.patch)
        hidden = self.conv_in(hidden.contiguous(memory_format=self._memory_format()))
        skips = [hidden]
        for stage in self.down:
            hidden = stage(hidden, time, context, context_mask)
            skips.append(hidden)
        hidden = self.middle_in(hidden, time, context, context_mask)
        hidden = self.middle_out(hidden, time, context, context_mask)
        for stage in self.up:
            assert isinstance(stage, _Stage)
            if stage.residual.resize is None:
                hidden = torch.cat([hidden, skips.pop()], dim=1)
            hidden = stage(hidden, time, context, context_mask)
        hidden = self.conv_out(F.silu(self.norm_out(hidden)))
        return F.pixel_shuffle(hidden, self.config.patch)
