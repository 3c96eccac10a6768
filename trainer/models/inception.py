"""Inception v3 as TensorFlow published it in 2015, whose features FID and Inception Score are of.

torchvision's blocks with the three differences of that graph: its average pools leave the border
out of the mean, the last block takes a maximum where others take an average, and pictures are
resized by TensorFlow 1's rule. The weights are those that torch-fidelity and pytorch-fid publish
under the name `inception-2015-12-05`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import inception as blocks

FEATURES = 2048
CLASSES = 1008
_SIDE = 299


class Inception(nn.Module):
    """Pictures to features and logits, in evaluation mode."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        """`weights` are the published ones, whose names are those of torchvision's network.

        Raises:
            ValueError: they are another network's; the message names the first difference.
        """
        super().__init__()
        with torch.device("meta"):
            network: Any = blocks.Inception3(
                CLASSES, aux_logits=False, inception_blocks=_BLOCKS, init_weights=False
            )
            network.Mixed_7c = _LastBlock(FEATURES)
        network.load_state_dict(_fitting(weights, network.state_dict()), assign=True)
        self.classes: Tensor = network.fc.weight  # [CLASSES, FEATURES]
        network.fc = nn.Identity()
        self.network = network.float()
        self.eval().requires_grad_(False)

    @torch.inference_mode()
    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [B, 3, H, W] → features [B, 2048] and logits without their biases [B, 1008].

        Without biases, as both scores were published.
        """
        pixels = (resized(pictures.float()) - 128) / 128
        features = self.network(pixels)
        return features, features @ self.classes.T


def resized(pictures: Tensor, side: int = _SIDE) -> Tensor:
    """TensorFlow 1's bilinear resize, from the corner on: [B, C, H, W] → [B, C, side, side].

    Nothing is averaged away: pictures that are larger than `side` lose pixels.
    """
    for dim in (-2, -1):
        size = pictures.shape[dim]
        at = torch.arange(side, device=pictures.device) * torch.tensor(size / side)
        low = at.long()
        share = (at - low).to(pictures)
        ends = (low, (low + 1).clamp(max=size - 1))
        first, second = (pictures.index_select(dim, end) for end in ends)
        pictures = first + (second - first) * (share[:, None] if dim == -2 else share)
    return pictures


def _fitting(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The given weights; counters of batches, which older files lack, decide nothing."""
    counters = {name: torch.zeros((), dtype=torch.int64) for name in wanted if _counts(name)}
    found = {name: tensor for name, tensor in given.items() if not _counts(name)}
    for name in sorted({*found, *wanted} - counters.keys()):
        shapes = [list(part[name].shape) if name in part else None for part in (found, wanted)]
        if shapes[0] != shapes[1]:
            got, expected = ("no such tensor" if shape is None else shape for shape in shapes)
            raise ValueError(f"{name}: got {got}, expected {expected}")
    return found | counters


def _counts(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _through(block: Any, x: Tensor, *names: str) -> Tensor:
    for name in names:
        x = getattr(block, name)(x)
    return x


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class _BlockA(blocks.InceptionA):  # type: ignore[misc]
    def _forward(self, x: Tensor) -> list[Tensor]:
        return [
            _through(self, x, "branch1x1"),
            _through(self, x, "branch5x5_1", "branch5x5_2"),
            _through(self, x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
            _through(self, _average(x), "branch_pool"),
        ]


class _BlockC(blocks.InceptionC):  # type: ignore[misc]
    def _forward(self, x: Tensor) -> list[Tensor]:
        return [
            _through(self, x, "branch1x1"),
            _through(self, x, *(f"branch7x7_{n}" for n in (1, 2, 3))),
            _through(self, x, *(f"branch7x7dbl_{n}" for n in (1, 2, 3, 4, 5))),
            _through(self, _average(x), "branch_pool"),
        ]


class _BlockE(blocks.InceptionE):  # type: ignore[misc]
    def _forward(self, x: Tensor) -> list[Tensor]:
        short = _through(self, x, "branch3x3_1")
        long = _through(self, x, "branch3x3dbl_1", "branch3x3dbl_2")
        return [
            _through(self, x, "branch1x1"),
            *(_through(self, short, f"branch3x3_2{half}") for half in "ab"),
            *(_through(self, long, f"branch3x3dbl_3{half}") for half in "ab"),
            _through(self, self._pooled(x), "branch_pool"),
        ]

    def _pooled(self, x: Tensor) -> Tensor:
        return _average(x)


class _LastBlock(_BlockE):
    def _pooled(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 3, stride=1, padding=1)


_BLOCKS = [
    blocks.BasicConv2d,
    _BlockA,
    blocks.InceptionB,
    _BlockC,
    blocks.InceptionD,
    _BlockE,
    blocks.InceptionAux,
]
