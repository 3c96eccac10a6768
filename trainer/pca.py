"""What the autoregressive prior's codec takes from the data, in passes of bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.loader.catalogue import Catalogue
from trainer.models.codec import Codec

_BLOCK = 4096  # embeddings that are in memory at once
_JUDGED = 16  # blocks that the error of the finished codec is measured on
_BINS = 1 << 16  # of similarities, between -1 and 1
_NARROWEST = 1e-6  # range of a component that the data do not vary in

Doubles = NDArray[np.float64]


class Fit(NamedTuple):
    """A codec's state, and how well it holds the data: errors are shares of their variance."""

    state: dict[str, Tensor]
    rows: int  # that it was fitted on
    components: int
    embedding_dim: int
    left_out: float  # by the components that are not kept
    error: float  # mean squared, by left-out components and buckets together

    def __str__(self) -> str:
        return (
            f"{self.components} of {self.embedding_dim} components of {self.rows:,} embeddings: "
            f"{self.left_out:.2%} of their variance left out, {self.error:.2%} with buckets"
        )


class Moments:
    """Mean and covariance of rows that come in blocks, summed in float64."""

    def __init__(self, dim: int) -> None:
        self.count = 0
        self._sum = np.zeros(dim)
        self._products = np.zeros((dim, dim))

    def add(self, rows: NDArray[Any]) -> None:
        """Take in a block [n, D]."""
        block = rows.astype(np.float64)
        self.count += len(block)
        self._sum += block.sum(axis=0)
        self._products += block.T @ block

    def mean(self) -> Doubles:
        """[D]"""
        return self._sum / self.count

    def axes(self) -> tuple[Doubles, Doubles]:
        """Variances [D], descending, and the unit vectors they are along, the rows of [D, D].

        The entry of a vector that is largest in magnitude is positive: of the two that would do
        it is always the same.
        """
        mean = self.mean()
        covariance = self._products / self.count - np.outer(mean, mean)
        values, vectors = np.linalg.eigh(covariance)
        variances, axes = np.maximum(values[::-1], 0.0), vectors.T[::-1]
        largest = np.abs(axes).argmax(axis=1)
        return variances, axes * np.sign(axes[np.arange(len(axes)), largest])[:, None]


class Similarities:
    """The distribution of z_i·z_t, counted in narrow bins."""

    def __init__(self) -> None:
        self._counts = np.zeros(_BINS, dtype=np.int64)

    def add(self, image: NDArray[Any], text: NDArray[Any]) -> None:
        """Take in pairs of rows [n, D]."""
        dots = np.einsum("nd,nd->n", image.astype(np.float64), text.astype(np.float64))
        bins = ((dots + 1) / 2 * _BINS).astype(np.int64).clip(0, _BINS - 1)
        self._counts += np.bincount(bins, minlength=_BINS)

    def edges(self, buckets: int) -> Doubles:
        """What parts the distribution into equal shares, [buckets - 1], to about 3e-5."""
        shares = np.concatenate([[0], self._counts.cumsum() / self._counts.sum()])
        wanted = np.arange(1, buckets) / buckets
        return np.interp(wanted, shares, np.linspace(-1, 1, _BINS + 1))


def fit_codec(codec: Codec, catalogue: Catalogue, most: int | None) -> Fit:
    """What a codec of this size takes from the data; `codec` itself stays as it is.

    Of more than `most` samples only about so many are read, in whole blocks that lie evenly among
    them. All count alike, whatever the weights of their DATASETs.

    Raises:
        UserError: embeddings are missing, or not what they should be.
    """
    count, dim = codec.axes.shape
    moments, similarities = Moments(dim), Similarities()
    for image, text in embedding_blocks(catalogue, most):
        moments.add(image)
        similarities.add(image, text)
    variances, axes = moments.axes()
    mean, kept = moments.mean(), axes[:count]
    low, high = _bounds(catalogue, most, mean, kept)
    values = {
        "mean": mean,
        "axes": kept,
        "low": low,
        "high": np.maximum(high, low + _NARROWEST),
        "dot_edges": similarities.edges(codec.dot_buckets),
    }
    state = {name: torch.from_numpy(value).float() for name, value in values.items()}
    fitted = Codec(dim, count, codec.buckets, codec.dot_buckets)
    fitted.load_state_dict(state)
    whole = max(float(variances.sum()), np.finfo(np.float64).tiny)
    left_out = float(variances[count:].sum()) / whole
    error = _error(fitted, catalogue) / whole
    return Fit(state, moments.count, count, dim, left_out, error)


def _bounds(
    catalogue: Catalogue, most: int | None, mean: Doubles, axes: Doubles
) -> tuple[Doubles, Doubles]:
    """The least and the greatest value of each component."""
    low, high = np.full(len(axes), np.inf), np.full(len(axes), -np.inf)
    for image, _ in embedding_blocks(catalogue, most):
        components = (image.astype(np.float64) - mean) @ axes.T
        low = np.minimum(low, components.min(axis=0))
        high = np.maximum(high, components.max(axis=0))
    return low, high


def _error(codec: Codec, catalogue: Catalogue) -> float:
    """The mean squared distance of embeddings from what is left of them."""
    total, count = 0.0, 0
    for image, _ in embedding_blocks(catalogue, _JUDGED * _BLOCK):
        z = torch.from_numpy(image).double()
        total += float((codec.decode(codec.encode(z)) - z).square().sum())
        count += len(z)
    return total / count


def embedding_blocks(
    catalogue: Catalogue, most: int | None
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Image and text embeddings, fp16 [n, D] each, in the order in which they are stored."""
    share = 1.0 if most is None else min(most / catalogue.epoch_size, 1.0)
    for pool in catalogue.pools:
        size = pool.order.epoch_size
        there = -(-size // _BLOCK)
        wanted = max(round(there * share), 1)
        for number in range(wanted):
            first = number * there // wanted * _BLOCK
            yield pool.shards.embeddings(np.arange(first, min(first + _BLOCK, size)))
