"""Guidance and thresholds: what they make of a denoiser."""

import pytest
import torch
from diffusers.guiders.guider_utils import rescale_noise_cfg

from trainer.diffusion.denoiser import denoiser
from trainer.diffusion.guidance import classifier_guided, clip_guided, guided_denoiser
from trainer.diffusion.process import Diffusion, DiffusionConfig, Estimate
from trainer.diffusion.samplers import ddim
from trainer.diffusion.schedules import spaced_timesteps
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


def conditioned(asked):
    """A network with two conditions a sample, that tells how many samples it was asked about."""
    condition = torch.tensor([0.5, 0.5, 0.0, 0.0]).view(4, 1, 1, 1)

    def ask(x, t):
        asked.append(len(x))
        return network(x, t) + condition[: len(x)]

    return ask


def test_guidance_on_an_interval_of_noise_levels():
    """σ = √((1 - ᾱ) / ᾱ): above the low end, up to the high one; outside it costs one call."""
    asked: list[int] = []
    x = torch.randn(2, 3, 4, 4)
    sigma = ((1 - DIFFUSION.alphas) / DIFFUSION.alphas).sqrt()
    low, high = float(sigma[300]), float(sigma[600]) * (1 + 1e-6)
    denoise = guided_denoiser(DIFFUSION, conditioned(asked), 3.0, (low, high))
    always = guided_denoiser(DIFFUSION, conditioned([]), 3.0)
    never = guided_denoiser(DIFFUSION, conditioned([]), 1.0)
    for step, guided in ((100, False), (300, False), (301, True), (600, True), (601, False)):
        t = torch.full((2,), step)
        expected = (always if guided else never)(x, t).x0
        torch.testing.assert_close(denoise(x, t).x0, expected, atol=1e-5, rtol=1e-5)
    assert asked == [2, 2, 4, 4, 2]
    mixed = denoise(x, torch.tensor([100, 400])).x0
    torch.testing.assert_close(mixed[0], never(x, torch.tensor([100, 400])).x0[0])
    torch.testing.assert_close(mixed[1], always(x, torch.tensor([100, 400])).x0[1])


@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_rescaled_guidance_is_that_of_diffusers(share):
    x, t = torch.randn(2, 3, 4, 4), torch.tensor([700, 40])
    plain = guided_denoiser(DIFFUSION, conditioned([]), 4.0)(x, t).x0
    conditional = guided_denoiser(DIFFUSION, conditioned([]), 1.0)(x, t).x0
    rescaled = guided_denoiser(DIFFUSION, conditioned([]), 4.0, rescale=share)(x, t).x0
    torch.testing.assert_close(rescaled, rescale_noise_cfg(plain, conditional, share))
    if share == 1:
        torch.testing.assert_close(rescaled.flatten(1).std(1), conditional.flatten(1).std(1))


MEAN, DEVIATION, SEEN, BLUR = 0.2, 0.5, 0.9, 0.4  # x_0 ~ N(MEAN, DEVIATION²); y = x_0 + BLUR · ε


def gaussian(mean, deviation):
    """The exact denoiser of N(mean, deviation²), and the variance that it leaves."""

    def estimate(x, t):
        a, s = DIFFUSION.levels(t, x)
        gain = a * deviation**2 / (a**2 * deviation**2 + s**2)
        return Estimate(mean + gain * (x - a * mean))

    return estimate


def left(x, t):
    a, s = DIFFUSION.levels(t, x)
    return DEVIATION**2 * s**2 / (a**2 * DEVIATION**2 + s**2)


def log_likelihood(x, t):
    """log p(y = SEEN | x_t), up to a constant."""
    spread = left(x, t) + BLUR**2
    return (-((gaussian(MEAN, DEVIATION)(x, t).x0 - SEEN) ** 2) / (2 * spread)).flatten(1).sum(1)


def test_classifier_guidance_of_a_gaussian_gives_the_product():
    """Prior N(MEAN, DEVIATION²) times likelihood N(SEEN, BLUR²), at every noise level."""
    precision = DEVIATION**-2 + BLUR**-2
    mean = (MEAN * DEVIATION**-2 + SEEN * BLUR**-2) / precision
    product = gaussian(mean, precision**-0.5)
    guided = classifier_guided(gaussian(MEAN, DEVIATION), DIFFUSION, log_likelihood)
    x = torch.linspace(-2, 2, 12).view(6, 2)
    t = torch.tensor([0, 10, 200, 500, 800, 950])
    torch.testing.assert_close(guided(x, t).x0, product(x, t).x0, atol=2e-4, rtol=1e-3)
    with torch.inference_mode():
        start = torch.linspace(-2, 2, 9)[:, None].clone()
        sample = ddim(guided, DIFFUSION, start, spaced_timesteps(1000, 200))
    torch.testing.assert_close(sample, mean + precision**-0.5 * start, atol=0.02, rtol=0.02)


def test_clip_guidance_moves_the_estimate_along_the_gradient():
    """By the variance that the denoiser leaves times the gradient of the similarity there."""

    def similarity(x0):
        return -((x0 - SEEN) ** 2).flatten(1).sum(1)

    inner = gaussian(MEAN, DEVIATION)
    guided = clip_guided(inner, DIFFUSION, similarity, 0.7)
    x, t = torch.linspace(-2, 2, 8).view(4, 2), torch.tensor([5, 300, 600, 900])
    with torch.inference_mode():
        found = guided(x, t)
    x0 = inner(x, t).x0
    torch.testing.assert_close(
        found.x0, x0 + 0.7 * left(x, t) * -2 * (x0 - SEEN), atol=1e-4, rtol=1e-3
    )
    assert not found.x0.requires_grad


def test_without_signal_a_gradient_moves_nothing():
    diffusion = Diffusion(DiffusionConfig(predicts="v", zero_terminal_snr=True))
    inner = denoiser(diffusion, lambda x, t: network(x[..., None, None], t)[..., 0, 0])
    x, t = torch.randn(2, 3), torch.full((2,), 999)
    guided = classifier_guided(inner, diffusion, lambda x, t: x.sum(1))
    assert torch.equal(guided(x, t).x0, inner(x, t).x0)


def test_guidance_by_a_gradient_keeps_a_learned_variance():
    def inner(x, t):
        return Estimate(x * 0.5, torch.sigmoid(x))

    x, t = torch.randn(2, 3), torch.tensor([100, 500])
    for guided in (
        classifier_guided(inner, DIFFUSION, lambda x, t: x.sum(1)),
        clip_guided(inner, DIFFUSION, lambda x0: x0.sum(1)),
    ):
        fraction = guided(x, t).fraction
        assert fraction is not None
        torch.testing.assert_close(fraction, torch.sigmoid(x))
        assert not fraction.requires_grad
