"""Hard negative captions: the same caption with a phrase exchanged for one that contradicts it.

Among the captions of one batch hardly two differ in the relation alone, so a contrastive loss can
fall to nothing while CLIP stays blind to it ("bags of words", Yuksekgonul et al. 2023, who exchange
words of the caption; here a config lists the phrases that contradict each other).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.models.clip import ClipFeatures

_PAD = 0  # what CLIP's tokenizer fills a row with


class OpposedCaptions:
    """Tokens of captions → those of the captions with a listed phrase exchanged."""

    def __init__(
        self, opposites: Mapping[str, Sequence[str]], encode: Callable[[str], list[int]]
    ) -> None:
        """`opposites`: phrase → those that contradict it; `encode`: a phrase's token ids.

        Raises:
            ValueError: a phrase is empty, or none contradicts it.
        """
        for phrase, others in opposites.items():
            if not others or not all(map(encode, (phrase, *others))):
                raise ValueError(f"got {phrase!r}: {list(others)}, expected phrases for a phrase")
        pairs = [
            (torch.tensor(encode(phrase)), [torch.tensor(encode(other)) for other in others])
            for phrase, others in opposites.items()
        ]
        # "to the left of" before "left of", which it contains.
        self._opposites = sorted(pairs, key=lambda pair: len(pair[0]), reverse=True)

    def __call__(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """tokens int64 [B, L] → the rows int64 [K] that have opposites, tokens of each [K, L].

        Of a caption's phrases the longest counts, at its first place; each that contradicts it
        gives an opposite, if the row has room for it.
        """
        if tokens.is_meta:  # shapes alone: as if every caption had the most that there can be
            most = max(len(others) for _, others in self._opposites)
            rows = torch.arange(len(tokens), device=tokens.device).repeat_interleave(most)
            return rows, tokens.repeat_interleave(most, dim=0)
        opposed, has = [], []  # [B, L] and bool [B] of each pair of phrases
        undecided = torch.ones_like(tokens[:, 0], dtype=torch.bool)  # [B]
        for phrase, others in self._opposites:
            found, start = _find(tokens, phrase.to(tokens.device))
            for other in others:
                exchanged, fits = _exchange(tokens, start, len(phrase), other.to(tokens.device))
                opposed.append(exchanged)
                has.append(undecided & found & fits)
            undecided &= ~found
        rows, pair = torch.stack(has, dim=1).nonzero().unbind(dim=1)
        return rows, torch.stack(opposed, dim=1)[rows, pair]


def opposed_loss(own: ClipFeatures, rows: Tensor, opposed: Tensor, margin: float) -> Tensor:
    """By how much pictures `rows` [K] fall short of preferring their own captions to opposites.

    `opposed` [K, D]; the hinge of the cosines' difference at `margin`, as in VSE++ (Faghri et al.
    2018). [K]. As one candidate more in the contrastive softmax an opposite is drowned: neither
    tower learns the relation while the other has not. A hinge can be weighted against that, and is
    silent where it is satisfied, so that the contrastive loss has the rest to itself.
    """
    difference = (own.image[rows] * (own.text[rows] - opposed)).sum(dim=1)
    return F.relu(margin - difference)


def _find(tokens: Tensor, phrase: Tensor) -> tuple[Tensor, Tensor]:
    """Which rows of tokens [B, L] have a phrase [N], and where it begins first. [B], [B]"""
    if len(phrase) > tokens.shape[1]:
        return torch.zeros_like(tokens[:, 0], dtype=torch.bool), torch.zeros_like(tokens[:, 0])
    matches = (tokens.unfold(1, len(phrase), 1) == phrase).all(dim=2)  # [B, L - N + 1]
    return matches.any(dim=1), matches.int().argmax(dim=1)


def _exchange(tokens: Tensor, start: Tensor, length: int, other: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [B, L] with `length` tokens from `start` [B] on exchanged for others [M], and what
    follows moved; and which rows have room for that, [B]."""
    size, longer = tokens.shape[1], len(other) - length
    place = torch.arange(size, device=tokens.device)  # [L]
    beyond = place - start[:, None]  # [B, L], the phrase's first token is at 0
    moved = F.pad(tokens, (0, max(-longer, 0)), value=_PAD)
    source = torch.where(beyond < 0, place, place - longer).clamp(min=0)
    kept = moved.gather(1, source)
    inside = (beyond >= 0) & (beyond < len(other))
    exchanged = torch.where(inside, other[beyond.clamp(0, len(other) - 1)], kept)
    return exchanged, (tokens[:, size - max(longer, 0) :] == _PAD).all(dim=1)
