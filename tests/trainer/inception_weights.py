"""Weights for Inception v3 that nobody trained, under the published names."""

import torch
from torch import Tensor

from trainer.models.inception import CLASSES, blocks


def random_weights() -> dict[str, Tensor]:
    """Under the published names, from a seed; sized so that features stay near 1."""
    with torch.device("meta"):
        shapes = blocks.Inception3(CLASSES, aux_logits=False, init_weights=False).state_dict()
    generator = torch.Generator().manual_seed(0)

    def draw(name: str, shape: torch.Size) -> Tensor:
        if name.endswith("num_batches_tracked"):
            return torch.zeros(shape, dtype=torch.int64)
        drawn = torch.randn(shape, generator=generator)
        if name.endswith(("running_var", "bn.weight")):
            return 1 + 0.1 * drawn.abs()
        fan = max(drawn[0].numel() if drawn.dim() > 1 else 100, 1)
        return drawn * (2 / fan) ** 0.5

    return {name: draw(name, tensor.shape) for name, tensor in shapes.items()}
