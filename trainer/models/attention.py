"""Scaled dot-product attention, by the faster of two ways for the device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

_MANY = 2**15  # between those of 8 x 8 pixels and of 16 x 16


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √d) v.

    q [B, heads, N, d]; k, v [B, heads, M, d]; mask bool, broadcastable to [B, heads, N, M], True
    where a key is seen; every row must see one. Returns [B, heads, N, d].

    On a CPU torch's fused kernel is the faster forward, and backward where the scores no longer fit
    the caches; where they are few it was up to six times slower (benchmarks/attention.py).
    """
    if q.device.type != "cpu" or not torch.is_grad_enabled() or _has_many_scores(q, k):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return written_out(q, k, v, mask)


def _has_many_scores(q: Tensor, k: Tensor) -> bool:
    """Whether the matrix of one head's scores is too large to be written out."""
    return q.shape[2] * k.shape[2] > _MANY


def written_out(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """The same in three products, for a CPU.

    q is scaled before the product, and fp16, whose largest number is 65,504, is left for it and the
    softmax, as the fused kernels do: an infinite score would make its row NaN.
    """
    scaled = q * q.shape[-1] ** -0.5
    if q.dtype == torch.float16:
        scaled, k = scaled.float(), k.float()
    scores = scaled @ k.transpose(-1, -2)  # [B, heads, N, M]
    if mask is not None:
        scores.masked_fill_(~mask, torch.finfo(scores.dtype).min)  # no product needs its own result
    out: Tensor = scores.softmax(dim=-1).to(v.dtype) @ v
    return out


def fast_attention_of_others(device: torch.device) -> AbstractContextManager[None]:
    """The quicker kernel of `F.scaled_dot_product_attention` inside other people's modules."""
    if device.type != "cpu":
        return nullcontext()
    context: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
    return context
