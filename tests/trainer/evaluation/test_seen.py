"""What processes see in their shares is, gathered, what one sees of the whole."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from base.progress import Progress
from base.stop import StopFlag
from data_pipeline.scenes import render, scene
from trainer.evaluation.fid import Moments, frechet_distance
from trainer.evaluation.judges import Seen
from trainer.evaluation.seen import CLIP, INCEPTION, Gallery, look_at


class Mean:
    """A judge that sees the colours of a picture's middle, and their squares."""

    def look(self, pictures: Tensor) -> Seen:
        colours = pictures[:, :, 0, 0].float()
        return Seen(colours, colours.square(), colours.flip(1))


class Process:
    """One of several that meet; those before it have left theirs in `box`."""

    def __init__(self, rank: int, ranks: int, box: dict[int, Any]) -> None:
        self.rank, self.ranks, self.box = rank, ranks, box
        self.first = rank == 0

    def gather(self, value: Any) -> list[Any]:
        self.box[self.rank] = value
        return [self.box[rank] for rank in range(self.ranks)] if self.first else []


def looked(pictures: Tensor, ranks: int, batch: int, truths: Any = None) -> Gallery:
    box: dict[int, Any] = {}
    judge: Any = Mean()

    def some(places: Sequence[int]) -> Tensor:
        return pictures[list(places)]

    with Progress("measure", None) as bar, StopFlag() as stop:
        for rank in reversed(range(ranks)):
            met: Any = Process(rank, ranks, box)
            found = look_at(len(pictures), some, truths, judge, met, bar, stop, batch)
            assert (found is None) == (rank > 0)
        assert bar.done == len(pictures)
    assert found is not None
    return found


def colours(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(0, 256, (count, 3, 1, 1), dtype=torch.uint8, generator=generator)
    return drawn.expand(-1, -1, 4, 4)


@given(st.integers(1, 13), st.integers(1, 5), st.integers(1, 6))
def test_rows_stay_in_order_and_sums_are_of_all(count: int, ranks: int, batch: int) -> None:
    """Also when there are fewer pictures than processes."""
    pictures = colours(count)
    found = looked(pictures, ranks, batch)
    expected = pictures[:, :, 0, 0].float()
    assert torch.equal(found.features[CLIP], expected)
    assert torch.equal(found.features[INCEPTION], expected.square())
    assert found.logits is not None
    assert torch.equal(found.logits, expected.flip(1))
    whole = Moments.of(expected)
    assert found.moments[CLIP].count == count
    assert torch.equal(found.moments[CLIP].total, whole.total)  # whole numbers: exact
    assert torch.equal(found.moments[CLIP].outer, whole.outer)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_distance_is_of_the_whole_and_no_mean_over_processes(ranks: int) -> None:
    real, made = (looked(colours(30, seed), ranks, 4).moments[CLIP] for seed in (1, 2))
    one, other = (colours(30, seed)[:, :, 0, 0].float() for seed in (1, 2))
    assert frechet_distance(real, made) == frechet_distance(Moments.of(one), Moments.of(other))


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_verdicts_belong_to_their_pictures(ranks: int) -> None:
    """Pictures with the next one's truth among them are not right, and it is known which."""
    truths = [scene(7, index, "heldout")[0] for index in range(7)]
    arrays = [torch.from_numpy(render(truth, 64)) for truth in truths]
    pictures = torch.stack(arrays).permute(0, 3, 1, 2)
    asked = [*truths[:5], truths[4], truths[6]]
    found = looked(pictures, ranks, 2, asked)
    right = [told.all_right for told in found.verdicts]
    assert right == [True] * 5 + [truths[5] == truths[4], True]
    assert not all(right)
