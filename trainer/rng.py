"""Counter-based random numbers: every draw is a function of (seed, position, purpose).

A sample's noise, timestep, dropout and crop therefore depend neither on the batch it is in nor on
the rank that draws it, and a resumed run needs no stored generator state. The generator is
Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
"""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF
_ROUNDS = 10


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Philox 4x32-10: four 32-bit words (held in int64) for each counter of four 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # An int64 product wraps, but its 64 bits are those of the unsigned product.
        p0, p1 = c0 * _M0, c2 * _M1
        high0, high1 = (p0 >> 32) & _MASK, (p1 >> 32) & _MASK
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, p1 & _MASK, high0 ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return [c0, c1, c2, c3]


class SampleRandom:
    """Draws for a batch of samples, each from its own stream.

    `positions` (int64, [B]) are the samples' places in the global order; `purpose` names a draw, so
    that adding one leaves the others as they were. The same (seed, position, purpose, shape) gives
    the same numbers on every device up to the rounding of log and cos.

    Raises:
        ValueError: the seed is not in [0, 2^64), or positions are no int64 [B].
    """

    def __init__(self, seed: int, positions: Tensor) -> None:
        if positions.dtype != torch.int64 or positions.dim() != 1:
            raise ValueError(
                f"positions: got {positions.dtype} {tuple(positions.shape)}, expected int64 [B]"
            )
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed: got {seed}, expected 0 to 2^64 - 1")
        self._key = (seed & _MASK, (seed >> 32) & _MASK)
        self._positions = positions

    def _words(self, purpose: str, count: int) -> Tensor:
        """`count` 32-bit words a sample, as int64 [B, count]."""
        blocks = -(-count // 4)
        position = self._positions[:, None].expand(-1, blocks)  # [B, blocks]
        block = torch.arange(blocks, device=position.device).expand_as(position)
        tag = torch.full_like(position, zlib.crc32(purpose.encode()))
        words = philox((block, position & _MASK, (position >> 32) & _MASK, tag), self._key)
        return torch.stack(words, dim=-1).flatten(1)[:, :count]

    def uniform(self, purpose: str, *shape: int) -> Tensor:
        """float32 [B, *shape], uniform in [0, 1)."""
        words = self._words(purpose, math.prod(shape))
        return ((words >> 8).float() * 2.0**-24).reshape(-1, *shape)

    def normal(self, purpose: str, *shape: int) -> Tensor:
        """float32 [B, *shape], standard normal (Box-Muller)."""
        count = math.prod(shape)
        pairs = -(-count // 2)
        words = self._words(purpose, 2 * pairs) >> 8
        first, second = words[:, :pairs].float(), words[:, pairs:].float()
        radius = torch.sqrt(-2.0 * torch.log((first + 1.0) * 2.0**-24))  # of (0, 1]: finite
        angle = second * (2.0 * math.pi * 2.0**-24)
        both = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)
        return both[:, :count].reshape(-1, *shape)

    def integers(self, purpose: str, high: int, *shape: int) -> Tensor:
        """int64 [B, *shape], uniform in [0, high) for 0 < high <= 2^31."""
        if not 0 < high <= 2**31:
            raise ValueError(f"high: got {high}, expected 1 to 2^31")
        words = self._words(purpose, math.prod(shape))
        return ((words * high) >> 32).reshape(-1, *shape)
