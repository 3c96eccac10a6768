"""Spherical interpolation and text differences, against their closed forms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize

from base.errors import UserError
from trainer.sampling.latents import slerp, turned_along


def unit(seed: int, *shape: int) -> torch.Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@given(st.integers(0, 99), st.floats(0, 1))
def test_slerp_of_unit_vectors_goes_round_at_even_speed(seed: int, share: float) -> None:
    a, b = (normalize(unit(at, 3, 16).double(), dim=-1) for at in (seed, seed + 100))
    made = slerp(a, b, share)
    torch.testing.assert_close(made.norm(dim=-1), torch.ones(3).double())
    whole = torch.acos((a * b).sum(-1))
    for other, turned in ((a, share * whole), (b, (1 - share) * whole)):
        angle = torch.acos((other * made).sum(-1).clamp(max=1.0))
        torch.testing.assert_close(angle, turned, atol=1e-6, rtol=1e-6)


def test_slerp_between_the_axes_is_sine_and_cosine() -> None:
    a, b = torch.eye(2)[:1], torch.eye(2)[1:]
    shares = torch.linspace(0, 1, 5)
    made = slerp(a.expand(5, 2), b.expand(5, 2), shares)
    angle = shares * math.pi / 2
    torch.testing.assert_close(made, torch.stack([angle.cos(), angle.sin()], dim=1))


def test_slerp_keeps_noise_as_loud_as_noise() -> None:
    """A straight line between two would halve its variance on the way."""
    a, b = torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert slerp(a, b, 0.5).var().item() == pytest.approx(1.0, abs=0.03)
    assert slerp(a, b, torch.tensor([0.0, 0.0, 1.0, 1.0])).equal(torch.cat([a[:2], b[2:]]))


def test_rows_that_are_the_same_stay_and_opposite_ones_are_refused() -> None:
    a = unit(0, 2, 8)
    torch.testing.assert_close(slerp(a, a.clone(), 0.3), a)
    with pytest.raises(UserError, match="opposite directions"):
        slerp(a, -a, 0.5)


def test_a_text_difference_turns_towards_the_change_of_captions() -> None:
    z, before, after = unit(1, 2, 8), unit(2, 2, 8), unit(3, 2, 8)
    change = normalize(after - before, dim=-1)
    torch.testing.assert_close(turned_along(z, before, after, 0.0), z)
    torch.testing.assert_close(turned_along(z, before, after, 1.0), change)
    torch.testing.assert_close(turned_along(z, before, after, 0.4), slerp(z, change, 0.4))
    with pytest.raises(UserError, match="CLIP reads as the same"):
        turned_along(z, before, before, 0.5)
