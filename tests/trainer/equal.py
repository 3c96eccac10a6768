"""Whether two runs are the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trainer.checkpoint.read import Checkpoint, SliceReader, resolve_checkpoint
from trainer.metrics import OF_THE_MACHINE, read_metrics


def without_times(run: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in line.items() if key not in OF_THE_MACHINE}
        for line in read_metrics(run)
    ]


def progress(checkpoint: Checkpoint) -> dict[str, Any]:
    state = checkpoint.state().to_json()
    state["window"] = {k: v for k, v in state["window"].items() if k not in OF_THE_MACHINE}
    return {key: value for key, value in state.items() if key not in OF_THE_MACHINE}


def assert_equal_runs(run: Path, other: Path) -> None:
    """Weights, both moments, averages, counters and metrics are the same bits."""
    ours, theirs = resolve_checkpoint(run), resolve_checkpoint(other)
    assert ours.manifest.kinds == theirs.manifest.kinds
    assert set(ours.manifest.tensors) == set(theirs.manifest.tensors)
    for kind in ours.manifest.kinds:
        for name in ours.manifest.tensors:
            one = SliceReader(ours).whole(kind, name)
            assert torch.equal(one, SliceReader(theirs).whole(kind, name)), (kind, name)
    assert progress(ours) == progress(theirs)
    assert without_times(run) == without_times(other)
