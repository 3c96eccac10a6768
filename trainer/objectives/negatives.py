"""Hard negative captions: the same caption with a word turned into its opposite.

Among the captions of one batch hardly two differ in the relation alone, so a contrastive loss can
fall to nothing while CLIP stays blind to it ("bags of words", Yuksekgonul et al. 2023, who exchange
words of the caption; here a config lists the words that mean the opposite).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.models.clip import ClipFeatures


class OpposedCaptions:
    """Tokens of captions → those of the captions with every listed word replaced."""

    def __init__(self, opposites: Mapping[str, str], encode: Callable[[str], list[int]]) -> None:
        """`opposites`: word → its opposite, in one direction; `encode`: a word's token ids.

        Raises:
            ValueError: a word is not one token.
        """
        self._opposites = {
            _one_token(word, encode): _one_token(other, encode) for word, other in opposites.items()
        }

    def __call__(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """tokens int64 [B, L] → the rows int64 [K] that have an opposite, its tokens [K, L]."""
        opposed = tokens.clone()
        for token, other in self._opposites.items():
            opposed.masked_fill_(tokens == token, other)
        if tokens.is_meta:  # shapes alone: as if every caption had one
            return torch.arange(len(tokens), device=tokens.device), opposed
        rows = (opposed != tokens).any(dim=1).nonzero()[:, 0]
        return rows, opposed[rows]


def opposed_loss(own: ClipFeatures, rows: Tensor, opposed: Tensor, margin: float) -> Tensor:
    """By how much pictures `rows` [K] fall short of preferring their own caption to its opposite.

    `opposed` [K, D]; the hinge of the cosines' difference at `margin`, as in VSE++ (Faghri et al.
    2018). [K]. As one candidate more in the contrastive softmax an opposite is drowned: neither
    tower learns the relation while the other has not. A hinge can be weighted against that, and is
    silent where it is satisfied, so that the contrastive loss has the rest to itself.
    """
    difference = (own.image[rows] * (own.text[rows] - opposed)).sum(dim=1)
    return F.relu(margin - difference)


def _one_token(word: str, encode: Callable[[str], list[int]]) -> int:
    tokens = encode(word)
    if len(tokens) != 1:
        raise ValueError(f"got {word!r}, expected a word that is one token to CLIP")
    return tokens[0]
