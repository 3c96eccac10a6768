"""A batch as arrays, which readers fill row by row and a rank takes as tensors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.batch import Batch, Needs
from trainer.loader.order import Ints
from trainer.loader.vectors import Vectors


class Arrays(NamedTuple):
    """A batch as arrays that are filled row by row; a part that is not needed is None."""

    image: NDArray[np.uint8] | None  # [B, 3, S, S]
    tokens: NDArray[np.int64] | None  # [B, L]
    image_embedding: NDArray[np.float16] | None  # [B, D]
    text_embedding: NDArray[np.float16] | None  # [B, D]
    image_norm: NDArray[np.float32] | None  # [B]
    text_norm: NDArray[np.float32] | None  # [B]

    def vectors(self) -> Vectors | None:
        """The embeddings, where there are any."""
        if self.image_embedding is None or self.text_embedding is None:
            return None
        return Vectors(self.image_embedding, self.text_embedding)

    def batch(self, positions: Ints, rows: slice) -> Batch:
        """Some rows as tensors that share the arrays' memory."""
        parts = (None if part is None else torch.from_numpy(part[rows]) for part in self)
        return Batch(torch.from_numpy(positions[rows]), *parts)


def layout(needs: Needs, dim: int, rows: int) -> list[tuple[tuple[int, ...], str] | None]:
    """Shapes and types of the arrays of a batch, in the order of `Arrays`."""
    side = needs.crop or needs.image_size
    return [
        None if side is None else ((rows, 3, side, side), "u1"),
        ((rows, needs.context_length), "i8") if needs.tokens else None,
        ((rows, dim), "f2") if needs.embeddings else None,
        ((rows, dim), "f2") if needs.embeddings else None,
        ((rows,), "f4") if needs.norms else None,
        ((rows,), "f4") if needs.norms else None,
    ]


def empty_arrays(needs: Needs, dim: int, rows: int) -> Arrays:
    """Arrays in this process's own memory."""
    parts = layout(needs, dim, rows)
    return Arrays(*(None if part is None else np.empty(*part) for part in parts))
