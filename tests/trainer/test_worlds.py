"""Resume on another number of ranks and another ZeRO stage: the same curve, the same samples.

More of them with `make soak`.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import worlds

from trainer.checkpoint.export import read_weights
from trainer.checkpoint.read import resolve_checkpoint
from trainer.metrics import read_metrics

SCRIPT = Path(__file__).with_name("worlds.py")
HALF, WHOLE = 48, 96


class Change(NamedTuple):
    """Ranks and ZeRO stage of a run's first half, and of its second."""

    ranks: int
    zero: int
    then_ranks: int
    then_zero: int

    @property
    def run(self) -> str:
        return "-".join(map(str, self))


CHANGES = [Change(3, 3, 2, 1), Change(2, 1, 4, 3)]
if os.environ.get("UNCLIP_SOAK"):
    both = [(1, 1), (1, 3), (3, 1), (3, 3)]
    CHANGES = [
        *(Change(2, zero, 4, then) for zero, then in both),
        *(Change(3, zero, 2, then) for zero, then in both),
        *(Change(4, zero, 2, then) for zero, then in both),
        *(Change(2, zero, 2, then) for zero, then in [(1, 3), (3, 1), (0, 2), (2, 0)]),
        *(Change(1, zero, 2, then) for zero, then in [(1, 3), (3, 1)]),
        *(Change(2, zero, 1, then) for zero, then in [(1, 3), (3, 1)]),
    ]


@pytest.fixture(scope="module")
def folder(
    dataset: Path,
    torchrun: Callable[[int, Path, Sequence[object]], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("worlds")
    worlds.part(dataset, folder, "alone", {"samples": WHOLE})
    begun: set[Change] = set()
    for ranks in (3, 1, 4, 2, 4, 1):
        words: list[object] = []
        for change in CHANGES:
            if change not in begun and change.ranks == ranks:
                words += [change.run, change.zero, HALF]
                begun.add(change)
            if change in begun and change.then_ranks == ranks:
                words += [change.run, change.then_zero, WHOLE]
        if words:
            torchrun(ranks, SCRIPT, [dataset, folder, *words])
    return folder


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.run)
def test_a_run_goes_on_elsewhere_with_the_same_curve(folder: Path, change: Change) -> None:
    run, alone = folder / change.run, folder / "alone"
    assert resolve_checkpoint(run).manifest.world_size == change.then_ranks
    ours, theirs = (
        [(line["samples"], line["loss"], line["grad_norm"]) for line in read_metrics(path)]
        for path in (run, alone)
    )
    assert len(ours) == len(theirs) == WHOLE // 24
    for line, expected in zip(ours, theirs, strict=True):
        assert line == pytest.approx(expected, rel=2e-6)
    for which in ("raw", "ema"):
        weights = read_weights(alone, which)
        for name, value in read_weights(run, which).items():
            assert (value - weights[name]).abs().max() < 2e-5, (which, name)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.run)
def test_a_run_goes_on_elsewhere_with_exactly_the_same_samples(
    folder: Path, change: Change
) -> None:
    seen = at_positions(folder / "seen" / change.run)
    assert seen == at_positions(folder / "seen" / "alone")
    assert [position for position, _ in seen] == list(range(WHOLE)), "missing or taken twice"
    parts = {path.stem.rpartition("-")[0] for path in (folder / "seen" / change.run).iterdir()}
    assert parts == {f"{HALF}-{change.ranks}", f"{WHOLE}-{change.then_ranks}"}


def at_positions(seen: Path) -> list[tuple[int, list[float]]]:
    """What all ranks took, by position."""
    return sorted(
        (position, embedding)
        for path in seen.iterdir()
        for position, embedding in json.loads(path.read_text())
    )
