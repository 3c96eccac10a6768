"""Embeddings in buckets: there and back, at the edges and beyond them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ortho_group
from torch import Tensor

from trainer.models.codec import Codec

DIM, KEPT, BUCKETS = 6, 4, 16


def codec(seed: int = 0, **changed: Tensor) -> Codec:
    """Fitted to nothing: any axes, means and bounds."""
    random = torch.Generator().manual_seed(seed)
    made = Codec(DIM, KEPT, BUCKETS, 8)
    axes = torch.from_numpy(ortho_group.rvs(DIM, random_state=seed)[:KEPT]).float()
    low = -torch.rand(KEPT, generator=random) - 0.1
    state = {"mean": torch.randn(DIM, generator=random), "axes": axes, "low": low, "high": -2 * low}
    made.load_state_dict({**made.state_dict(), **state, **changed})
    return made


def components(made: Codec, z: Tensor) -> Tensor:
    return (z - made.mean) @ made.axes.T


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.lists(st.integers(0, BUCKETS - 1), min_size=KEPT, max_size=KEPT))
def test_tokens_survive_the_way_to_an_embedding_and_back(seed: int, tokens: list[int]) -> None:
    made = codec(seed)
    there = torch.tensor([tokens])
    z = made.decode(there)
    assert z.dtype == torch.float32
    assert torch.equal(made.encode(z), there)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.lists(st.floats(0, 1), min_size=KEPT, max_size=KEPT))
def test_a_component_moves_by_half_a_bucket_at_most(seed: int, shares: list[float]) -> None:
    made = codec(seed)
    span = made.high - made.low
    x = made.low + torch.tensor([shares]) * span
    z = made.mean + x @ made.axes
    again = components(made, made.decode(made.encode(z)))
    assert ((again - x).abs() <= span / BUCKETS / 2 * (1 + 1e-4) + 1e-5).all()


def test_tokens_rise_with_their_component_and_stop_at_the_last_bucket() -> None:
    made = codec()
    steps = torch.linspace(-9, 9, 4000)[:, None].expand(-1, KEPT)
    tokens = made.encode(made.mean + steps @ made.axes)
    assert (tokens.diff(dim=0) >= 0).all()
    assert tokens[0].tolist() == [0] * KEPT
    assert tokens[-1].tolist() == [BUCKETS - 1] * KEPT
    inside = (steps > made.low) & (steps < made.high)
    for column in range(KEPT):
        filled = tokens[:, column][inside[:, column]]
        assert filled.min() == 0
        assert filled.max() == BUCKETS - 1


def test_what_is_not_a_number_is_a_token_all_the_same() -> None:
    """A wrong index would end the process on a GPU."""
    tokens = codec().encode(torch.tensor([[torch.nan, torch.inf, -torch.inf, 0.0, 1.0, 2.0]]))
    assert ((tokens >= 0) & (tokens < BUCKETS)).all()


def test_similarities_fall_between_their_edges() -> None:
    edges = torch.tensor([-0.5, 0.0, 0.1, 0.1, 0.2, 0.6, 0.9])
    made = codec(dot_edges=edges)
    dots = torch.tensor([-1.0, -0.5, -0.1, 0.0, 0.05, 0.1, 0.15, 0.3, 0.9, 1.1])
    assert made.encode_dot(dots).tolist() == np.digitize(dots.numpy(), edges.numpy()).tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_leaves_the_codec_as_it_is(dtype: torch.dtype) -> None:
    made = codec()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), made).to(dtype)
    assert model[0].weight.dtype == dtype
    for name, value in made.state_dict().items():
        assert torch.equal(value, before[name])
    assert {value.device.type for value in made.to("meta").state_dict().values()} == {"meta"}
    assert made.half().mean.dtype == torch.float32


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="components: got 7, expected 1 to 6"):
        Codec(6, 7, 16, 8)
    with pytest.raises(ValueError, match="components: got 0, expected 1 to 6"):
        Codec(6, 0, 16, 8)
    with pytest.raises(ValueError, match=r"^buckets: got 1, expected >= 2"):
        Codec(6, 6, 1, 8)
    with pytest.raises(ValueError, match="dot_buckets: got 0, expected >= 2"):
        Codec(6, 6, 16, 0)
