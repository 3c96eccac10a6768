"""Image embeddings as short sequences of whole numbers: principal components in buckets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Codec(nn.Module):
    """An embedding z_i ↔ K tokens, and the similarity z_i·z_t → one token (paper section 2.2).

    A component is cut into buckets of one width between its least and its greatest value in the
    data; what lies beyond falls into the last one. A similarity is cut into buckets that the data
    fill equally, so that the upper half of them is the upper half of its distribution. Both are
    choices of ours: the paper tells the number of buckets alone.

    All of it is fixed: `trainer.pca` measures it on the data, and it stays float32 in a model of
    half precision, where components would move by more than a bucket.
    """

    mean: Tensor  # [D]
    axes: Tensor  # [K, D], rows of unit length, the largest variance first
    low: Tensor  # [K], of the first bucket of each component
    high: Tensor  # [K], of the last one
    dot_edges: Tensor  # [dot_buckets - 1], between neighbours

    def __init__(self, embedding_dim: int, components: int, buckets: int, dot_buckets: int) -> None:
        """Until it is fitted the components are the first coordinates, between -1 and 1.

        Raises:
            ValueError: more components than coordinates, or fewer than two buckets.
        """
        super().__init__()
        if not 0 < components <= embedding_dim:
            raise ValueError(f"components: got {components}, expected 1 to {embedding_dim}")
        for name, count in (("buckets", buckets), ("dot_buckets", dot_buckets)):
            if count < 2:
                raise ValueError(f"{name}: got {count}, expected >= 2")
        self.buckets, self.dot_buckets = buckets, dot_buckets
        self.register_buffer("mean", torch.zeros(embedding_dim))
        self.register_buffer("axes", torch.eye(components, embedding_dim))
        self.register_buffer("low", -torch.ones(components))
        self.register_buffer("high", torch.ones(components))
        self.register_buffer("dot_edges", torch.linspace(-1, 1, dot_buckets + 1)[1:-1])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Follow the model to another device, and not to another precision."""

        def moved(tensor: Tensor) -> Tensor:
            changed = fn(tensor)
            same = changed.dtype == tensor.dtype
            return changed if same else tensor.to(changed.device)

        return super()._apply(moved, recurse)  # type: ignore[no-untyped-call]

    def encode(self, z: Tensor) -> Tensor:
        """Unit vectors [B, D] → tokens int64 [B, K].

        In float64, so that a token does not hang on the rounding of one device or batch.
        """
        components = (z.double() - self.mean.double()) @ self.axes.double().T  # [B, K]
        low, high = self.low.double(), self.high.double()
        bucket = ((components - low) / (high - low) * self.buckets).floor().long()
        return bucket.clamp(0, self.buckets - 1)

    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens [B, K] → what the middles of their buckets stand for, float32 [B, D]."""
        share = (tokens.double() + 0.5) / self.buckets
        components = self.low + share * (self.high - self.low)  # [B, K]
        return (self.mean + components @ self.axes.double()).float()

    def encode_dot(self, dot: Tensor) -> Tensor:
        """Similarities z_i·z_t [B] → tokens int64 [B]."""
        return (dot.double()[:, None] >= self.dot_edges).sum(dim=1)
