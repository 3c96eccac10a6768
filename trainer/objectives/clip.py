"""CLIP's objective: the symmetric contrastive loss over the global batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from trainer.batch import Batch, Needs
from trainer.models.clip import ClipConfig, ClipFeatures, normalise_pixels
from trainer.rng import SampleRandom

from .negatives import OpposedCaptions, opposed_loss


@dataclass(frozen=True)
class GlobalFeatures:
    """Features of the whole global batch, detached, and where this rank's micro-batches lie."""

    image: Tensor  # [N, D]
    text: Tensor  # [N, D]
    starts: tuple[int, ...]  # first row of each micro-batch


@dataclass(frozen=True)
class ClipObjectiveConfig:
    """The logit scale is clipped, as in CLIP's paper (Radford et al. 2021, section 2.5).

    `opposites`: phrases and what each is exchanged for in hard negatives of a caption that has it,
    for instance {left of: [right of, above, below]}; none in the paper. A picture's cosine with its
    own caption shall exceed that with each of the hard negatives by `opposites_margin`.
    """

    largest_logit_scale: float = 100.0
    opposites: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    opposites_weight: float = 30.0
    opposites_margin: float = 0.1


class ClipObjective:
    """Contrastive learning with as many negatives as the global batch has samples.

    Micro-batches and ranks would each see their own negatives only. So a first pass without
    gradients caches all features (as open_clip's --accum-freq); then each micro-batch is run again
    with gradients and put in the place of its cached rows. Loss and gradients are those of one
    process with the whole batch; a ResNet's batch norms still see one micro-batch, as open_clip's.
    """

    def __init__(
        self, config: ClipObjectiveConfig, model: ClipConfig, opposed: OpposedCaptions | None = None
    ) -> None:
        self.config = config
        self.opposed = opposed
        self.needs = Needs(
            image_size=model.vision.image_size,
            tokens=True,
            context_length=model.text.context_length,
        )

    @torch.no_grad()
    def begin(self, model: nn.Module, batches: Sequence[Batch]) -> GlobalFeatures | None:
        """Cache the features of the global batch, if it is more than the one micro-batch."""
        if len(batches) == 1 and _world_size() == 1:
            return None
        with _still(model):
            features = [_features(model, batch, _tokens(batch)) for batch in batches]
        image = torch.cat([f.image for f in features])
        text = torch.cat([f.text for f in features])
        first = 0
        if _world_size() > 1:
            counts = _row_counts(image)
            first = sum(counts[: dist.get_rank()])
            image, text = _gathered(image, counts), _gathered(text, counts)
        starts = [first]
        for batch in batches[:-1]:
            starts.append(starts[-1] + len(batch))
        return GlobalFeatures(image, text, tuple(starts))

    def loss(
        self,
        model: nn.Module,
        batch: Batch,
        random: SampleRandom,
        context: object | None,
        index: int,
    ) -> Tensor:
        """Each sample's (image → text + text → image) / 2 cross entropy; `opposites` add theirs.

        [B]
        """
        tokens = _tokens(batch)
        rows = tokens.new_empty(0)
        if self.opposed is not None:
            rows, opposed = self.opposed(tokens)
            tokens = torch.cat([tokens, opposed])
        found = _features(model, batch, tokens)
        own = found._replace(text=found.text[: len(batch)])
        if context is None:
            context = GlobalFeatures(own.image, own.text, (0,))
        assert isinstance(context, GlobalFeatures)
        start, total = context.starts[index], len(context.image)
        share = len(batch) / total
        # Every micro-batch differentiates the whole loss; the scale is in all of them, so each
        # may contribute only its share of the scale's gradient.
        scale = own.logit_scale.clamp(max=self.config.largest_logit_scale)
        scale = scale.detach() + (scale - scale.detach()) * share
        image = _replaced(context.image, own.image, start)
        text = _replaced(context.text, own.text, start)
        logits = scale * image @ text.T  # [N, N]
        labels = torch.arange(total, device=logits.device)
        each = 0.5 * (
            F.cross_entropy(logits, labels, reduction="none")
            + F.cross_entropy(logits.T, labels, reduction="none")
        )  # [N]
        mean = each.mean()
        # Value: this micro-batch's samples. Gradient: that of the global mean, spread over them.
        loss = each[start : start + len(batch)].detach() + (mean - mean.detach()) / share
        if not len(rows):
            return loss
        hard = opposed_loss(own, rows, found.text[len(batch) :], self.config.opposites_margin)
        return loss.index_add(0, rows, self.config.opposites_weight * hard)

    def times(self, random: SampleRandom) -> None:
        """Nothing is diffused."""


@contextmanager
def _still(model: nn.Module) -> Iterator[None]:
    """Batch norms keep their running statistics: a batch that is seen twice counts once."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _tokens(batch: Batch) -> Tensor:
    assert batch.tokens is not None
    return batch.tokens


def _features(model: nn.Module, batch: Batch, tokens: Tensor) -> ClipFeatures:
    assert batch.image is not None
    features: ClipFeatures = model(normalise_pixels(batch.image), tokens)
    return features


def _replaced(cached: Tensor, own: Tensor, start: int) -> Tensor:
    return torch.cat([cached[:start], own, cached[start + len(own) :]])


def _row_counts(features: Tensor) -> list[int]:
    """Rows of each rank; shares of a batch differ by one where the ranks do not divide it."""
    own = torch.tensor([len(features)], device=features.device)
    counts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, own)
    return [int(count) for count in torch.cat(counts).tolist()]


def _gathered(features: Tensor, counts: Sequence[int]) -> Tensor:
    """Rows of all ranks in rank order; `counts` says how many each has."""
    # all_gather wants equal shapes: what is missing to the largest share is padded, then cut off.
    padded = F.pad(features, (0, 0, 0, max(counts) - len(features))).contiguous()
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
