"""What the autoregressive prior makes of captions: tokens one after another, then z_i."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.models.ar_prior import ArPrior
from trainer.models.clip import TextStates
from trainer.rng import SampleRandom

from .config import PriorPart


@dataclass(frozen=True)
class ArPart:
    """A trained autoregressive prior ready to be sampled."""

    settings: PriorPart
    network: ArPrior

    def sample(
        self, text: TextStates, null: TextStates, random: SampleRandom, purpose: str
    ) -> Tensor:
        """One z_i a caption, unit length, float32 [B, D]; `null` as for `sample_prior`."""
        settings, codec = self.settings, self.network.codec
        # The buckets hold equal parts of the data, so a share of them is that share of the data.
        rank = settings.dot_from + (1 - settings.dot_from) * random.uniform(f"{purpose}.dot")
        dot = (rank * codec.dot_buckets).long().clamp(max=codec.dot_buckets - 1)  # [B]
        uniform = random.uniform(f"{purpose}.tokens", len(codec.axes))  # [B, K]
        tokens = sample_tokens(self.network, text, null, dot, uniform, settings)
        return F.normalize(codec.decode(tokens), dim=-1)


def sample_tokens(
    network: ArPrior,
    text: TextStates,
    null: TextStates,
    dot: Tensor,
    uniform: Tensor,
    settings: PriorPart,
) -> Tensor:
    """Tokens int64 [B, K], each drawn by its number of `uniform` [B, K] from those before it.

    dot int64 [B]. With guidance each distribution is null + scale · (conditional - null) of the
    logits, and both branches go on with the same token.
    """
    guided = settings.guidance != 1
    if guided:
        text = TextStates(*(torch.cat(pair) for pair in zip(text, null, strict=True)))
        dot = torch.cat([dot, dot])
    logits, state = network.begin(text.states, text.mask, text.embedding, dot)
    tokens: list[Tensor] = []
    for numbers in uniform.unbind(dim=1):
        if tokens:
            last = tokens[-1]
            logits = network.extend(torch.cat([last, last]) if guided else last, state)
        now = logits.float()
        if guided:
            conditional, without = now.chunk(2)
            now = without + settings.guidance * (conditional - without)
        tokens.append(draw(now, numbers, settings.temperature, settings.top_p))
    return torch.stack(tokens, dim=1)


def draw(logits: Tensor, uniform: Tensor, temperature: float, top_p: float) -> Tensor:
    """One token a row, int64 [B], by the inverse of its distribution at `uniform` [B] in [0, 1).

    logits [B, buckets]. At temperature 0 the likeliest. Of the others only the likeliest that
    together have `top_p` of the probability, at least one (Holtzman et al. 2020).
    """
    if temperature == 0:
        return logits.argmax(dim=1)
    chances = (logits.double() / temperature).softmax(dim=1)
    if top_p < 1:
        ordered, order = chances.sort(dim=1, descending=True)
        before = ordered.cumsum(dim=1) - ordered
        chances = chances.scatter(1, order, ordered.masked_fill(before >= top_p, 0.0))
    sums = chances.cumsum(dim=1)
    wanted = uniform.double()[:, None] * sums[:, -1:]
    return torch.searchsorted(sums, wanted, right=True)[:, 0]
