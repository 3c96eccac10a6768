"""Weights of any power-function average, made after the run from the snapshots of others."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from base.errors import UserError
from trainer.checkpoint.export import write_weights
from trainer.checkpoint.read import SliceReader
from trainer.checkpoint.snapshots import read_snapshots
from trainer.config import LARGEST_STD
from trainer.ema.posthoc import LARGEST_ERROR, PostHoc, Weighting
from trainer.ema.profiles import gamma_of, std_of_kind

_BLOCK = 1 << 18  # elements that are summed at a time, in float64


class Source(NamedTuple):
    """A stored average, and its coefficient in the sum."""

    reader: SliceReader
    kind: str
    coefficient: float

    def add_to(self, total: Tensor, name: str, start: int) -> None:
        """Add its share of a tensor's elements from `start` on; `total` is float64 [count]."""
        total.add_(self.reader(self.kind, name, start, len(total)), alpha=self.coefficient)


class Synthesis(NamedTuple):
    """What was written."""

    out: Path
    samples: int
    std: float
    averages: int  # stored ones that it is a sum of
    error: float  # of the weighting of time that came out, relative to the wanted one


def synthesise(
    run: Path, std: float, out: Path, samples: int | None = None, replace: bool = False
) -> Synthesis:
    """Write the average of relative standard deviation `std` at a snapshot (None: the last one).

    One tensor is in memory at a time, and a block of each stored average of it.

    Raises:
        UserError: no snapshots, damaged ones or those of several runs; a `std` that they cannot
            give; `out` is there already and not to be replaced.
    """
    if not 0 < std <= LARGEST_STD:
        raise UserError(f"--std: got {std}, expected a value > 0 and <= {LARGEST_STD}")
    snapshots = read_snapshots(run, samples)
    stored = [(snapshot, kind) for snapshot in snapshots for kind in snapshot.manifest.kinds]
    posthoc = PostHoc(
        [
            Weighting(snapshot.state().ema_updates, gamma_of(std_of_kind(kind)))
            for snapshot, kind in stored
        ]
    )
    last = snapshots[-1]
    updates = last.state().ema_updates
    fit = posthoc.fit(Weighting(updates, gamma_of(std)))
    if fit.error > LARGEST_ERROR:
        raise UserError(_refusal(std, fit.error, posthoc.reachable(updates), len(snapshots)))
    readers = {snapshot.folder: SliceReader(snapshot) for snapshot in snapshots}
    sources = [
        Source(readers[snapshot.folder], kind, coefficient)
        for (snapshot, kind), coefficient in zip(stored, fit.coefficients, strict=True)
    ]
    reader, at = readers[last.folder], last.manifest.samples
    about = {"run": run.name, "samples": str(at), "std": str(std), "error": f"{fit.error:.2e}"}
    write_weights(out, reader, lambda name: _sum(sources, reader, name), about, replace)
    return Synthesis(out, at, std, len(sources), fit.error)


def _sum(sources: list[Source], reader: SliceReader, name: str) -> Tensor:
    record = reader.manifest.tensors[name]
    result = torch.empty(record.count)
    for start in range(0, record.count, _BLOCK):
        block = result[start : start + _BLOCK]
        total = torch.zeros(len(block), dtype=torch.float64)
        for source in sources:
            source.add_to(total, name, start)
        block.copy_(total)
    return result.reshape(record.shape)


def _refusal(std: float, error: float, reachable: list[tuple[float, float]], snapshots: int) -> str:
    met = ", ".join(f"{low:.3f} to {high:.3f}" for low, high in reachable) or "none"
    return (
        f"--std: got {std}, whose average {snapshots} snapshots give with an error of {error:.0%}, "
        f"expected at most {LARGEST_ERROR:.0%}; they give {met}"
    )
