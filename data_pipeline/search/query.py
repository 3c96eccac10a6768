"""What is searched for, as an embedding of the DATASET's own CLIP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from base.errors import UserError
from data_pipeline.config import PrepareConfig
from data_pipeline.decode import Limits, decode
from data_pipeline.row import Rejection
from data_pipeline.search.embeddings import EmbeddingSet, require_same_clip

if TYPE_CHECKING:
    from data_pipeline.clip import Clip

_LIMITS = PrepareConfig()


def read_picture(path: Path) -> npt.NDArray[np.uint8]:
    """RGB pixels [H, W, 3] of a picture's file, decoded like those of a DATASET.

    Raises:
        UserError: it is missing, too large, or no picture.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: expected a picture's file")
    if path.stat().st_size > _LIMITS.max_bytes:
        raise UserError(f"{path}: more than {_LIMITS.max_bytes} bytes")
    try:
        limits = Limits(_LIMITS.max_pixels)
        return decode(path.read_bytes(), limits, lambda width, height: (width, height)).pixels
    except Rejection as error:
        raise UserError(f"{path}: {error.reason}: {error.message}") from error


def embed_query(
    embeddings: EmbeddingSet, clip: str, text: str | None, picture: npt.NDArray[np.uint8] | None
) -> npt.NDArray[np.float32]:
    """The query as a row of norm 1, float32 [D]: of `text`, or of a picture.

    Raises:
        UserError: the CLIP cannot be loaded, or is not the one that the set was made with.
    """
    if clip == "none":
        raise UserError("clip: got 'none', expected the CLIP that the DATASET was embedded with")
    import torch

    from data_pipeline.clip import load_clip

    loaded: Clip = load_clip(clip, "cpu")
    require_same_clip(embeddings, loaded.info)
    with torch.inference_mode():
        features = loaded.images([picture]) if picture is not None else loaded.texts([text or ""])
        row = (features / features.norm(dim=-1, keepdim=True))[0]
    if not bool(row.isfinite().all()):
        raise UserError("query: the CLIP gives features that are zero or not finite")
    return np.ascontiguousarray(row.numpy(), np.float32)
