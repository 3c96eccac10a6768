"""The principal directions of a DATASET's image embeddings."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from base.errors import UserError
from trainer.config import DataConfig
from trainer.loader.catalogue import Catalogue
from trainer.pca import Moments, embedding_blocks


def principal_directions(data: Path, count: int) -> tuple[Tensor, Tensor]:
    """The mean [D] and the `count` directions of largest variance [count, D], float32.

    Raises:
        UserError: the folder is no DATASET with embeddings, or has fewer dimensions.
    """
    catalogue = Catalogue(DataConfig(paths=(str(data),)), 0)
    dim = catalogue.pools[0].shards.dim()
    if count > dim:
        raise UserError(f"--dims: got {count}, expected at most {dim} as in {data}")
    moments = Moments(dim)
    for image, _ in embedding_blocks(catalogue, None):
        moments.add(image)
    _, axes = moments.axes()
    return torch.from_numpy(moments.mean()).float(), torch.from_numpy(axes[:count].copy()).float()
