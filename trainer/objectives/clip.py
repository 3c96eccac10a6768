"""CLIP's objective: the symmetric contrastive loss over the global batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.batch import Batch, Needs
from trainer.models.clip import ClipConfig, ClipFeatures, normalise_pixels
from trainer.rng import SampleRandom

from .negatives import OpposedCaptions

_NONE = -1e4  # the cosine of a hard negative that is not there: no share of any softmax


@dataclass(frozen=True)
class Features:
    """Unit-length features of some samples."""

    image: Tensor  # [N, D]
    text: Tensor  # [N, D]
    opposed: Tensor  # [N], cosine of each picture with its own hard negative caption, or _NONE


@dataclass(frozen=True)
class GlobalFeatures:
    """Features of the whole global batch, detached, and where this rank's micro-batches lie."""

    features: Features
    starts: tuple[int, ...]  # first row of each micro-batch


@dataclass(frozen=True)
class ClipObjectiveConfig:
    """The logit scale is clipped, as in CLIP's paper (Radford et al. 2021, section 2.5).

    `opposites`: words and what they are exchanged for in a hard negative of each caption that has
    one, for instance {left: right, right: left}; none in the paper.
    """

    largest_logit_scale: float = 100.0
    opposites: Mapping[str, str] = field(default_factory=dict)


class ClipObjective:
    """Contrastive learning with as many negatives as the global batch has samples.

    Micro-batches and ranks would each see their own negatives only. So a first pass without
    gradients caches all features (as open_clip's --accum-freq); then each micro-batch is run again
    with gradients and put in the place of its cached rows. Loss and gradients are those of one
    process with the whole batch.
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
        parts = [self._features(model, batch)[0] for batch in batches]
        features = Features(
            *(torch.cat(column) for column in zip(*map(_columns, parts), strict=True))
        )
        first, rows = 0, len(features.image)
        if _world_size() > 1:
            first = dist.get_rank() * rows
            features = Features(*map(_gathered, _columns(features)))
        starts = [first]
        for batch in batches[:-1]:
            starts.append(starts[-1] + len(batch))
        return GlobalFeatures(features, tuple(starts))

    def loss(
        self,
        model: nn.Module,
        batch: Batch,
        random: SampleRandom,
        context: object | None,
        index: int,
    ) -> Tensor:
        """Each sample's (image → text + text → image) / 2 cross entropy. [B]"""
        own, logit_scale = self._features(model, batch)
        start, everyone = 0, own
        if context is not None:
            assert isinstance(context, GlobalFeatures)
            start = context.starts[index]
            everyone = _replaced(context.features, own, start)
        share = len(batch) / len(everyone.image)
        # Every micro-batch differentiates the whole loss; the scale is in all of them, so each
        # may contribute only its share of the scale's gradient.
        scale = logit_scale.clamp(max=self.config.largest_logit_scale)
        scale = scale.detach() + (scale - scale.detach()) * share
        each = _cross_entropies(everyone, scale)  # [N]
        mean = each.mean()
        # Value: this micro-batch's samples. Gradient: that of the global mean, spread over them.
        return each[start : start + len(batch)].detach() + (mean - mean.detach()) / share

    def _features(self, model: nn.Module, batch: Batch) -> tuple[Features, Tensor]:
        """One micro-batch's features, and the logit scale."""
        assert batch.image is not None
        assert batch.tokens is not None
        tokens, rows = batch.tokens, None
        if self.opposed is not None:
            rows, opposites = self.opposed(tokens)
            tokens = torch.cat([tokens, opposites])
        found: ClipFeatures = model(normalise_pixels(batch.image), tokens)
        text = found.text[: len(batch)]
        opposed = text.new_full((len(batch),), _NONE)
        if rows is not None:
            cosines = (found.image[rows] * found.text[len(batch) :]).sum(dim=1)  # [K]
            opposed = opposed.index_copy(0, rows, cosines)
        return Features(found.image, text, opposed), found.logit_scale


def _cross_entropies(features: Features, scale: Tensor) -> Tensor:
    """(image → text + text → image) / 2 of each pair among all; a picture's own hard negative is
    one more caption for it. [N]"""
    logits = scale * features.image @ features.text.T  # [N, N]
    captions = torch.cat([logits, scale * features.opposed[:, None]], dim=1)  # [N, N + 1]
    labels = torch.arange(len(logits), device=logits.device)
    return 0.5 * (
        F.cross_entropy(captions, labels, reduction="none")
        + F.cross_entropy(logits.T, labels, reduction="none")
    )


def _columns(features: Features) -> tuple[Tensor, Tensor, Tensor]:
    return features.image, features.text, features.opposed


def _replaced(cached: Features, own: Features, start: int) -> Features:
    """The whole batch's features with one micro-batch's own, which have gradients, in place."""
    end = start + len(own.image)
    pairs = zip(_columns(cached), _columns(own), strict=True)
    return Features(*(torch.cat([c[:start], o, c[end:]]) for c, o in pairs))


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _gathered(features: Tensor) -> Tensor:
    """Rows of all ranks in rank order; every rank has the same number."""
    parts = [torch.empty_like(features) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, features.contiguous())
    return torch.cat(parts)
