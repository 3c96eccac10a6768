"""Guidance and thresholds: what they make of a denoiser."""

import torch

from trainer.diffusion.denoiser import denoiser
from trainer.diffusion.guidance import guided_denoiser
from trainer.diffusion.process import Diffusion, DiffusionConfig, Estimate
from trainer.diffusion.thresholds import clipped, dynamically_thresholded

DIFFUSION = Diffusion(DiffusionConfig())


def network(x, t):
    """Any fixed function will do as a network."""
    return torch.tanh(x * 0.7 + t.view(-1, 1, 1, 1) / 1000 - 0.3)


def test_guidance_zero_is_null_one_is_conditional_and_it_is_linear():
    condition = torch.cat([torch.full((2, 1, 1, 1), 0.5), torch.zeros(2, 1, 1, 1)])

    def conditional_network(x, t):
        return network(x, t) + condition[: len(x)]

    x, t = torch.randn(2, 3, 4, 4), torch.tensor([10, 500])
    alone = {
        value: denoiser(DIFFUSION, lambda x, t, v=value: network(x, t) + v)(x, t).x0
        for value in (0.5, 0.0)
    }
    for scale, expected in (
        (0.0, alone[0.0]),
        (1.0, alone[0.5]),
        (3.0, alone[0.0] + 3 * (alone[0.5] - alone[0.0])),
    ):
        guided = guided_denoiser(DIFFUSION, conditional_network, scale)(x, t).x0
        torch.testing.assert_close(guided, expected, atol=1e-4, rtol=1e-4)


def test_thresholds():
    wide = torch.linspace(-4, 4, 1000).view(1, 1, 10, 100)
    narrow = wide / 8

    def same(x, t):
        return Estimate(x)

    t = torch.zeros(1, dtype=torch.int64)
    assert clipped(same)(wide, t).x0.abs().max() == 1
    dynamic = dynamically_thresholded(same, 0.9)
    assert dynamic(wide, t).x0.abs().max() == 1
    assert torch.equal(dynamic(narrow, t).x0, narrow)  # in range already: not stretched
    inner = dynamic(wide, t).x0[0, 0, 5, 0]
    torch.testing.assert_close(inner, wide[0, 0, 5, 0] / torch.quantile(wide.abs(), 0.9))


def test_a_learned_variance_is_the_conditional_halfs_and_thresholds_leave_it():
    diffusion = Diffusion(DiffusionConfig(predicts="x0", learned_variance=True))
    spread = torch.tensor([0.5, -1.0]).view(2, 1, 1, 1)  # conditional, null

    def ranged_network(x, t):
        return torch.cat([2 * x, spread[: len(x)].expand_as(x)], dim=1)

    x, t = torch.randn(1, 3, 4, 4), torch.tensor([500])
    guided = guided_denoiser(diffusion, ranged_network, 3.0)
    for denoise in (guided, clipped(guided), dynamically_thresholded(guided)):
        torch.testing.assert_close(denoise(x, t).fraction, torch.full_like(x, 0.75))
