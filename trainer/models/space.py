"""The space in which a network is given CLIP's embeddings: how long they are.

CLIP's contrastive loss knows directions alone, and DATASETs keep an embedding as its direction and,
beside it, its length. What a network sees is a choice: the paper's take unit length times a scale,
Karlo's take CLIP's projections as they come.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

Length = Literal["unit", "raw"]


@dataclass(frozen=True)
class EmbeddingSpace:
    """`unit`: embeddings of length 1; `raw`: of the length that CLIP's projection gives them.

    All methods take and give float32 [B, D].
    """

    length: Length = "unit"

    def project(self, projections: Tensor) -> Tensor:
        """CLIP's own projections, in this space."""
        projections = projections.float()
        return F.normalize(projections, dim=-1) if self.length == "unit" else projections

    def unscaled(self, scaled: Tensor, scale: float) -> Tensor:
        """Embeddings of which `scale` times are given; a direction needs no scale to be known."""
        return self.project(scaled if self.length == "unit" else scaled / scale)

    def stored(self, directions: Tensor, norms: Tensor | None) -> Tensor:
        """What a DATASET keeps: directions, and their lengths [B], which `raw` needs."""
        if self.length == "unit":
            return directions
        assert norms is not None
        return norms[:, None] * directions

    def directions(self, embeddings: Tensor) -> Tensor:
        """Embeddings of this space at unit length."""
        return embeddings if self.length == "unit" else F.normalize(embeddings, dim=-1)

    def turned(self, embeddings: Tensor, directions: Tensor) -> Tensor:
        """Embeddings of this space as long as they are, but in other `directions`."""
        if self.length == "unit":
            return directions
        lengths: Tensor = embeddings.norm(dim=-1, keepdim=True)
        return lengths * directions
