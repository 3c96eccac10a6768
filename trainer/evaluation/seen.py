"""Pictures looked at by all processes, each its share, and gathered on the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from base.progress import Progress
from base.stop import StopFlag
from data_pipeline.schema.scenes import Scene
from trainer.sampling.meeting import Meeting

from .fid import Moments
from .judges import Judges, Seen
from .scenes import Verdict
from .scores import verdicts

CLIP, INCEPTION = "clip", "inception"  # whose features


@dataclass(frozen=True)
class Share:
    """What one process saw: every ranks-th picture, in order."""

    seen: Seen
    moments: dict[str, Moments]
    verdicts: list[Verdict] = field(default_factory=list)


@dataclass(frozen=True)
class Gallery:
    """What was seen of a whole set, in the order of its pictures; sums over all processes."""

    features: dict[str, Tensor]  # by whose they are, float32 [N, D]
    moments: dict[str, Moments]
    logits: Tensor | None  # [N, 1008]
    verdicts: list[Verdict]

    @property
    def embeddings(self) -> Tensor:
        """CLIP's, of unit length. [N, D]"""
        return F.normalize(self.features[CLIP], dim=-1)


def look_at(
    count: int,
    pictures: Callable[[Sequence[int]], Tensor],
    truths: Sequence[Scene] | None,
    judges: Judges,
    met: Meeting,
    bar: Progress,
    stop: StopFlag,
    batch: int,
) -> Gallery | None:
    """See `count` pictures, of which `pictures` gives those at some places, uint8 [n, 3, S, S].

    `truths` are what a verifier is to find in them. Gives nothing but on the first process.
    """
    own = range(count)[met.rank :: met.ranks]
    shares = []
    for first in range(0, len(own), batch):
        stop.raise_if_requested()
        places = own[first : first + batch]
        some = pictures(places)
        told = [] if truths is None else verdicts(some, [truths[place] for place in places])
        seen = judges.look(some)
        shares.append(Share(seen, _moments(seen), told))
        bar.advance(len(places))
    gathered = met.gather(_joined(shares) if shares else None)
    return _gallery([share for share in gathered if share is not None]) if met.first else None


def _moments(seen: Seen) -> dict[str, Moments]:
    found = {CLIP: Moments.of(seen.clip)}
    if seen.inception is not None:
        found[INCEPTION] = Moments.of(seen.inception)
    return found


def _joined(shares: Sequence[Share]) -> Share:
    """Shares that follow each other, as one."""
    parts = zip(*(share.seen for share in shares), strict=True)
    seen = Seen(*(None if part[0] is None else torch.cat(part) for part in parts))  # type: ignore[arg-type]
    return Share(seen, _summed(shares), [told for share in shares for told in share.verdicts])


def _summed(shares: Sequence[Share]) -> dict[str, Moments]:
    total = shares[0].moments
    for share in shares[1:]:
        total = {name: total[name] + more for name, more in share.moments.items()}
    return total


def _gallery(shares: Sequence[Share]) -> Gallery:
    """Of the shares of all processes."""
    parts = zip(*(share.seen for share in shares), strict=True)
    clip, inception, logits = (_dealt_back(part) for part in parts)
    features = {CLIP: clip, INCEPTION: inception}
    told = [share.verdicts for share in shares]
    return Gallery(
        {name: tensor for name, tensor in features.items() if tensor is not None},
        _summed(shares),
        logits,
        list(_taking_turns(told)),
    )


def _dealt_back(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Rows of which each part has every len(parts)-th."""
    if parts[0] is None:
        return None
    given = [part for part in parts if part is not None]
    whole = torch.empty(sum(map(len, given)), *given[0].shape[1:])
    for rank, part in enumerate(given):
        whole[rank :: len(given)] = part
    return whole


def _taking_turns(lists: Sequence[list[Verdict]]) -> Iterator[Verdict]:
    for place in range(max(map(len, lists))):
        yield from (told[place] for told in lists if place < len(told))
