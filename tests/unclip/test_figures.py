"""What the demo draws and counts for its figures, seen through a spy in the cascade's place."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from base.progress import Progress
from data_pipeline.scenes import Split, render, scene
from data_pipeline.schema.scenes import Scene
from trainer.evaluation.pairs import Pairs, balanced, distinct
from trainer.evaluation.scores import scene_scores
from trainer.models.clip import TextStates
from trainer.rng import SampleRandom
from unclip.demo.config import Sampling
from unclip.demo.draw import (
    Condition,
    draw,
    foreign_embedding,
    from_caption,
    no_embedding,
    no_text,
    true_embedding,
)

EMPTY = -1.0  # what the spy makes of the empty caption


class Spy:
    """A cascade whose embeddings are [number of the caption, its draw], and what was decoded."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.z_i: list[list[float]] = []
        self.captions_seen: list[float] = []
        self.kept: list[bool] = []

    def captions(self, captions: Sequence[str]) -> TextStates:
        return states([float(caption) for caption in captions])

    def no_captions(self, count: int) -> TextStates:
        return states([EMPTY] * count)

    def sample_prior(self, text: TextStates, random: SampleRandom) -> Tensor:
        return torch.cat([text.embedding, random.uniform("prior", 1)], dim=1)

    def decode(self, z_i: Tensor, text: TextStates, random: SampleRandom, keep: bool) -> Tensor:
        assert len(z_i) == len(text.embedding) == len(random.uniform("decoder"))
        self.z_i += z_i.tolist()
        self.captions_seen += text.embedding[:, 0].tolist()
        self.kept += [keep] * len(z_i)
        return torch.zeros(len(z_i), 3, 2, 2)

    def upsample(self, picture: Tensor, random: SampleRandom) -> Tensor:
        return picture


def states(values: list[float]) -> TextStates:
    embedding = torch.tensor(values)[:, None]
    seen = torch.ones(len(values), 1, dtype=torch.bool)
    return TextStates(embedding[:, None], seen, embedding, seen.long())


def numbered(count: int) -> Pairs:
    """Captions "0", "1", …; the true embedding of caption i is [100 + i, 0]."""
    image = torch.stack([100.0 + torch.arange(count), torch.zeros(count)], dim=1)
    captions = tuple(map(str, range(count)))
    return Pairs(Path(), tuple(range(count)), captions, image, torch.zeros(count, 2), None)


def drawn(
    condition: Condition,
    folder: Path,
    count: int = 5,
    batch: int = 2,
    chosen: Sequence[int] | None = None,
) -> Spy:
    spy: Any = Spy()
    pairs = numbered(count) if chosen is None else numbered(count).take(chosen)
    sampling = Sampling(
        prior_steps=1, decoder_steps=1, decoder_guidance=1.0, upsampler_steps=1, batch=batch
    )
    with Progress("pictures", len(pairs)) as bar:
        made = draw(spy, pairs, condition, sampling, folder / "drawn.npy", bar)
        assert (len(made), bar.done) == (len(pairs), len(pairs))
    found: Spy = spy
    return found


def own(count: int) -> list[list[float]]:
    """The prior's embeddings of captions "0", "1", … at their own places."""
    uniform = SampleRandom(0, torch.arange(count)).uniform("prior")
    return [[float(i), float(uniform[i])] for i in range(count)]


def test_the_system_itself(tmp_path: Path) -> None:
    spy = drawn(from_caption, tmp_path)
    assert spy.z_i == own(5)
    assert spy.captions_seen == [0, 1, 2, 3, 4]
    assert all(spy.kept)


def test_the_true_embedding_in_place_of_the_priors(tmp_path: Path) -> None:
    spy = drawn(true_embedding, tmp_path)
    assert spy.z_i == numbered(5).image_embedding.tolist()
    assert spy.captions_seen == [0, 1, 2, 3, 4]
    assert all(spy.kept)


@pytest.mark.parametrize(("count", "batch"), [(2, 1), (3, 2), (4, 4), (5, 2), (5, 5), (9, 8)])
def test_a_foreign_embedding_is_never_the_own(count: int, batch: int, tmp_path: Path) -> None:
    """Also in a batch of one; each is used once, as it is for its own caption."""
    spy = drawn(foreign_embedding, tmp_path, count, batch)
    assert all(z[0] != caption for z, caption in zip(spy.z_i, spy.captions_seen, strict=True))
    assert sorted(spy.z_i) == own(count)
    assert spy.captions_seen == list(range(count))
    assert all(spy.kept)


def test_foreign_embeddings_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    one = drawn(foreign_embedding, tmp_path, batch=2)
    assert one.z_i == drawn(foreign_embedding, tmp_path / "other", batch=5).z_i


def test_a_pair_is_drawn_alike_among_others(tmp_path: Path) -> None:
    """Its noise is its own: a control's pictures differ by the condition alone."""
    spy = drawn(from_caption, tmp_path, chosen=[4, 1])
    assert spy.z_i == [own(5)[4], own(5)[1]]


def test_no_embedding_is_the_caption_alone(tmp_path: Path) -> None:
    spy = drawn(no_embedding, tmp_path)
    assert spy.captions_seen == [0, 1, 2, 3, 4]
    assert not any(spy.kept)


def test_no_text_is_the_priors_embedding_alone(tmp_path: Path) -> None:
    spy = drawn(no_text, tmp_path)
    assert spy.z_i == own(5)
    assert spy.captions_seen == [EMPTY] * 5
    assert all(spy.kept)


def test_pictures_that_are_there_are_not_drawn_again(tmp_path: Path) -> None:
    drawn(from_caption, tmp_path)
    spy: Any = Spy()
    sampling = Sampling(prior_steps=1, decoder_steps=1, decoder_guidance=1.0, upsampler_steps=1)
    with Progress("pictures", 0) as bar:
        again = draw(spy, numbered(5), from_caption, sampling, tmp_path / "drawn.npy", bar)
    assert again.shape == (5, 3, 2, 2)
    assert (spy.kept, bar.done) == ([], 0)


def scenes(split: Split, count: int) -> tuple[Scene, ...]:
    return tuple(scene(7, index, split)[0] for index in range(count))


def pairs_of(truths: tuple[Scene, ...]) -> Pairs:
    count = len(truths)
    captions, indices = tuple(map(str, range(count))), tuple(range(count))
    return Pairs(Path(), indices, captions, torch.eye(count), torch.eye(count), truths)


def pictures_of(truths: Sequence[Scene]) -> Tensor:
    arrays = [torch.from_numpy(render(truth, 64)) for truth in truths]
    return torch.stack(arrays).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("single", "pair"), [(3, 5), (5, 0), (0, 2), (1, 1)])
def test_balanced_takes_the_first_of_each(single: int, pair: int) -> None:
    everything = pairs_of(scenes("heldout", 40))
    found = balanced(everything, single, pair)
    assert everything.truths is not None
    objects = [len(truth.objects) for truth in everything.truths]
    first = [i for i in range(40) if objects[i] == 1][:single]
    first += [i for i in range(40) if objects[i] == 2][:pair]
    assert len(first) == single + pair
    assert found.indices == tuple(sorted(first))
    assert found.truths == tuple(everything.truths[i] for i in found.indices)
    assert torch.equal(found.image_embedding, torch.eye(40)[sorted(first)])


def test_balanced_takes_what_there_is() -> None:
    assert len(balanced(pairs_of(scenes("heldout", 40)), 100, 100)) == 40


def test_no_caption_twice() -> None:
    pairs = Pairs(Path(), (3, 4, 5, 6), ("a", "b", "a", "c"), torch.eye(4), torch.eye(4), None)
    assert distinct(pairs).indices == (3, 4, 6)


SEEN, UNSEEN = scenes("heldout", 24), scenes("unseen", 24)


def test_rendered_true_scenes_are_right() -> None:
    truths = SEEN + UNSEEN
    found = scene_scores(pictures_of(truths), pairs_of(truths))
    for score in found.values():
        assert (score["seen"], score["unseen"]) == (1, 1)
    assert found["background"]["count"] == found["single_all"]["count"] + found["pair_all"]["count"]
    assert found["background"]["count"] == 48


@pytest.mark.parametrize("wrong", ["seen", "unseen"])
def test_pictures_of_other_scenes_are_not_and_count_where_they_belong(wrong: str) -> None:
    shown = {"seen": SEEN, "unseen": UNSEEN}
    shown[wrong] = shown[wrong][1:] + shown[wrong][:1]
    pictures = pictures_of(shown["seen"] + shown["unseen"])
    found = scene_scores(pictures, pairs_of(SEEN + UNSEEN))
    right = "unseen" if wrong == "seen" else "seen"
    assert all(score[right] == 1 for score in found.values())
    assert found["single_all"][wrong] < 0.2
    assert found["pair_all"][wrong] < 0.2
