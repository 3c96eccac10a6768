"""The autoregressive prior's objective: what the network is told, and what its answer costs."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.batch import Batch
from trainer.models.ar_prior import ArPrior, ArPriorConfig
from trainer.models.clip import TextStates
from trainer.objectives.ar_prior import ArPriorObjective, ArPriorObjectiveConfig
from trainer.rng import SampleRandom

COUNT, DIM, LENGTH = 300, 8, 5
CONFIG = ArPriorConfig(
    DIM, 4, LENGTH, components=6, buckets=16, dot_buckets=8, layers=1, heads=1, head_width=8
)


class Captions:
    """In the place of a frozen CLIP: states and embedding tell the caption's first token."""

    context_length = LENGTH
    null_tokens = torch.tensor([1, 2, 0, 0, 0])

    def __call__(self, tokens: Tensor) -> TextStates:
        first = tokens[:, :1].float()
        states = first[:, :, None].expand(-1, LENGTH, 4)
        return TextStates(states, tokens > 0, F.one_hot(tokens[:, 0] % DIM, DIM).float(), tokens)


class Spy(ArPrior):
    """Records what it is given."""

    def forward(self, *given: Tensor) -> Tensor:
        self.states, self.mask, self.z_t, self.dot, self.tokens = given
        return super().forward(*given)


def objective(**more: Any) -> ArPriorObjective:
    captions: Any = Captions()
    return ArPriorObjective(ArPriorObjectiveConfig(**more), captions)


def batch(count: int = COUNT) -> Batch:
    random = torch.Generator().manual_seed(0)
    image, text = F.normalize(torch.randn(2, count, DIM, generator=random), dim=2)
    tokens = torch.randint(3, 90, (count, LENGTH), generator=random)
    return Batch(torch.arange(count), None, tokens, image, text)


def test_captions_are_dropped_with_their_embedding_and_nothing_else() -> None:
    data, spy = batch(), Spy(CONFIG)
    before = data.image_embedding.clone()
    objective().loss(spy, data, SampleRandom(0, data.positions), None, 0)
    assert torch.equal(data.image_embedding, before)
    dropped = spy.states[:, 0, 0] == 1
    assert 0.05 < dropped.float().mean() < 0.16  # 10 %
    null = F.one_hot(torch.tensor(1), DIM).float()
    assert torch.equal(spy.z_t[dropped], null.expand(int(dropped.sum()), -1))
    assert torch.equal(spy.z_t[~dropped], data.text_embedding[~dropped])
    assert (spy.mask[dropped].sum(dim=1) == 2).all()
    similarity = (data.image_embedding * data.text_embedding).sum(dim=1)
    assert torch.equal(spy.dot, ((similarity + 1) / 2 * 8).long())
    assert torch.equal(spy.tokens, spy.codec.encode(data.image_embedding))


def test_the_loss_is_the_mean_cross_entropy_of_the_tokens() -> None:
    torch.manual_seed(0)
    spy, data = Spy(CONFIG), batch(12)
    fresh = objective().loss(spy, data, SampleRandom(0, data.positions), None, 0)
    torch.testing.assert_close(fresh, torch.full((12,), math.log(16)))
    torch.nn.init.normal_(spy.logits_out.weight)
    found = objective().loss(spy, data, SampleRandom(0, data.positions), None, 0)
    logits = spy(spy.states, spy.mask, spy.z_t, spy.dot, spy.tokens)
    picked = logits.log_softmax(-1).gather(2, spy.tokens[..., None])[..., 0]
    torch.testing.assert_close(found, -picked.mean(dim=1))
    assert objective().times(SampleRandom(0, data.positions)) is None


def test_a_loss_depends_on_seed_and_position_alone() -> None:
    torch.manual_seed(0)
    model, data = ArPrior(CONFIG), batch(6)
    torch.nn.init.normal_(model.logits_out.weight)

    def losses(rows: slice, seed: int = 0) -> Tensor:
        part = Batch(*(None if v is None else v[rows] for v in vars(data).values()))
        random = SampleRandom(seed, part.positions)
        return objective(drop_text=0.5).loss(model, part, random, None, 0)

    whole = losses(slice(0, 6))
    parts = torch.cat([losses(slice(0, 1)), losses(slice(1, 4)), losses(slice(4, 6))])
    torch.testing.assert_close(whole, parts)
    assert not torch.allclose(whole, losses(slice(0, 6), seed=1))


def test_it_learns_what_it_is_shown() -> None:
    """Two captions with an embedding each: after some steps their tokens are near certain."""
    torch.manual_seed(0)
    model = ArPrior(CONFIG)
    both = batch(2)
    data = Batch(
        *(None if v is None else v.repeat_interleave(8, dim=0) for v in vars(both).values())
    )
    adam = torch.optim.Adam(model.parameters(), lr=3e-2)
    for step in range(90):
        random = SampleRandom(step, torch.arange(16))
        loss = objective(drop_text=0.0).loss(model, data, random, None, 0).mean()
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
    assert loss.item() < 0.2


def test_it_wants_tokens_and_embeddings_and_no_pictures() -> None:
    needs = objective().needs
    assert (needs.image_size, needs.tokens, needs.embeddings) == (None, True, True)
    assert needs.context_length == LENGTH
    with pytest.raises(ValueError, match=r"drop_text: got -0\.1, expected 0 to 1"):
        objective(drop_text=-0.1)
