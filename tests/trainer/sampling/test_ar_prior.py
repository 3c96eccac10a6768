"""Sampling the autoregressive prior: its draws, its guidance, and that batches do not matter."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import TopPLogitsWarper

from trainer.models.ar_prior import ArPrior, ArPriorConfig
from trainer.models.clip import TextStates
from trainer.rng import SampleRandom
from trainer.sampling.ar_prior import ArPart, draw, sample_tokens
from trainer.sampling.config import PriorPart
from trainer.sampling.drawing import sample_prior

CONFIG = ArPriorConfig(
    embedding_dim=16, text_width=32, context_length=12, components=6, buckets=32, dot_buckets=8,
    layers=2, heads=2, head_width=16,
)  # fmt: skip


def part(**settings: Any) -> ArPart:
    """Random in every weight, so that each token hangs on all before it."""
    torch.manual_seed(0)
    network = ArPrior(CONFIG).eval().requires_grad_(False)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return ArPart(PriorPart(run="prior", **settings), network)


def texts(count: int) -> tuple[TextStates, TextStates, SampleRandom]:
    random = torch.Generator().manual_seed(2)
    mask = torch.arange(12) < torch.randint(1, 13, (count, 1), generator=random)
    text, null = (
        TextStates(
            torch.randn(count, 12, 32, generator=random),
            mask if kind else torch.arange(12).expand(count, -1) < 2,
            F.normalize(torch.randn(count, 16, generator=random), dim=1),
            torch.zeros(count, 12, dtype=torch.int64),
        )
        for kind in (1, 0)
    )
    return text, null, SampleRandom(5, torch.arange(count))


def rows(text: TextStates, some: slice) -> TextStates:
    return TextStates(*(value[some] for value in text))


@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_an_embedding_is_the_same_in_any_batch(size: int, guidance: float) -> None:
    made = part(guidance=guidance, candidates=2)
    text, null, random = texts(8)
    whole = sample_prior(made, text, null, random)
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(8))
    for first in range(0, 8, size):
        some = slice(first, first + size)
        own = SampleRandom(5, torch.arange(8)[some])
        found = sample_prior(made, rows(text, some), rows(null, some), own)
        assert torch.equal(found, whole[some])
    assert not torch.equal(sample_prior(made, text, null, SampleRandom(6, torch.arange(8))), whole)


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_tokens_are_those_of_the_whole_sequence_computed_each_time(guidance: float) -> None:
    made = part(guidance=guidance, temperature=0.7, top_p=0.9)
    text, null, random = texts(4)
    dot, uniform = torch.tensor([4, 7, 5, 6]), random.uniform("tokens", 6)
    found = sample_tokens(made.network, text, null, dot, uniform, made.settings)
    expected = torch.zeros(4, 6, dtype=torch.int64)
    for place in range(6):
        logits = made.network(text.states, text.mask, text.embedding, dot, expected)
        without = made.network(null.states, null.mask, null.embedding, dot, expected)
        logits = (without + guidance * (logits - without))[:, place]
        expected[:, place] = draw(logits, uniform[:, place], 0.7, 0.9)
    assert torch.equal(found, expected)
    assert len(found.unique()) > 6


def test_tokens_come_as_often_as_they_are_likely() -> None:
    logits = torch.tensor([2.0, -1.0, 0.5, -30.0, 1.0])
    uniform = (torch.arange(10_000) + 0.5) / 10_000
    for temperature in (1.0, 0.5, 3.0):
        tokens = draw(logits.expand(10_000, -1), uniform, temperature, 1.0)
        shares = tokens.bincount(minlength=5) / 10_000
        torch.testing.assert_close(shares, (logits / temperature).softmax(0), atol=2e-4, rtol=0)
    assert draw(logits[None], torch.tensor([0.999]), 0.0, 1.0).tolist() == [0]


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.8, 0.99])
def test_unlikely_tokens_are_left_out_as_transformers_does(top_p: float) -> None:
    logits = torch.randn(6, 20, generator=torch.Generator().manual_seed(0)) * 2
    expected = TopPLogitsWarper(top_p)(None, logits).softmax(dim=1)
    uniform = (torch.arange(5000) + 0.5) / 5000
    for row, chances in zip(logits, expected, strict=True):
        shares = draw(row.expand(5000, -1), uniform, 1.0, top_p).bincount(minlength=20) / 5000
        torch.testing.assert_close(shares, chances, atol=5e-4, rtol=0)
        assert ((shares > 0) <= (chances > 0)).all()


def test_the_largest_number_never_draws_what_cannot_be() -> None:
    uniform = torch.full((3,), 1 - 2.0**-24)
    logits = torch.tensor([[0.0, 0.0, -torch.inf], [1.0, -800.0, -900.0], [0.0, 5.0, -800.0]])
    assert draw(logits, uniform, 1.0, 1.0).tolist() == [1, 0, 1]
    assert draw(logits, torch.zeros(3), 1.0, 1.0).tolist() == [0, 0, 0]


class Told(ArPrior):
    """Remembers which similarities it was asked for."""

    def begin(self, states: Tensor, mask: Tensor, z_t: Tensor, dot: Tensor) -> Any:
        self.dots = dot
        return super().begin(states, mask, z_t, dot)


@pytest.mark.parametrize(("start", "expected"), [(0.5, [4, 5, 6, 7]), (0.0, list(range(8)))])
def test_similarities_are_drawn_from_the_upper_part(start: float, expected: list[int]) -> None:
    made = part(dot_from=start)
    network = Told(CONFIG)
    network.load_state_dict(made.network.state_dict())
    text, _, _ = texts(1)
    many = TextStates(*(value.expand(400, *value.shape[1:]) for value in text))
    random = SampleRandom(0, torch.arange(400))
    dataclasses.replace(made, network=network).sample(many, many, random, "prior.0")
    counts = network.dots.bincount(minlength=8)
    assert [token for token in range(8) if counts[token]] == expected
    assert counts[expected].min() > 0.5 * 400 / len(expected)


def test_the_candidate_nearest_to_the_caption_is_kept() -> None:
    text, null, random = texts(8)
    one, two = (part(candidates=count) for count in (1, 5))
    near = sample_prior(two, text, null, random)
    every = torch.stack([one.sample(text, null, random, f"prior.{i}") for i in range(5)])
    similarities = (every * text.embedding).sum(dim=-1)
    torch.testing.assert_close((near * text.embedding).sum(dim=1), similarities.amax(dim=0))
    assert similarities.std(dim=0).min() > 1e-3
