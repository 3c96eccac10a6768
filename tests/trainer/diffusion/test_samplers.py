"""Samplers against the closed form on Gaussian data, and against diffusers."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from trainer.diffusion.denoiser import denoiser
from trainer.diffusion.process import Diffusion, DiffusionConfig, Estimate
from trainer.diffusion.samplers import ancestral, ddim
from trainer.diffusion.schedules import spaced_timesteps
from trainer.diffusion.thresholds import clipped
from trainer.rng import SampleRandom

MEAN, DEVIATION = 0.4, 0.3


@pytest.fixture
def diffusion() -> Diffusion:
    return Diffusion(DiffusionConfig())


def gaussian_denoiser(diffusion: Diffusion):
    """E[x_0 | x_t] for x_0 ~ N(MEAN, DEVIATION²): what a perfect network would give."""

    def estimate(x, t):
        a, s = diffusion.levels(t, x)
        gain = a * DEVIATION**2 / (a**2 * DEVIATION**2 + s**2)
        return Estimate(MEAN + gain * (x - a * MEAN))

    return estimate


def noise(diffusion: Diffusion, count: int = 20_000):
    random = SampleRandom(1, torch.arange(count))
    return random.normal("x", 1), lambda step: random.normal(f"step {step}", 1)


def test_ddim_maps_noise_to_the_data_exactly(diffusion):
    x, _ = noise(diffusion)
    sample = ddim(gaussian_denoiser(diffusion), diffusion, x, spaced_timesteps(1000, 1000))
    # The probability flow of a Gaussian is affine: x_0 = MEAN + DEVIATION · x_T.
    torch.testing.assert_close(sample, MEAN + DEVIATION * x, atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("name", ["ancestral", "ddim eta 1"])
def test_stochastic_samplers_have_the_datas_moments(diffusion, name):
    x, step_noise = noise(diffusion)
    denoise, timesteps = gaussian_denoiser(diffusion), spaced_timesteps(1000, 250)
    if name == "ancestral":
        sample = ancestral(denoise, diffusion, x, timesteps, step_noise)
    else:
        sample = ddim(denoise, diffusion, x, timesteps, 1.0, step_noise)
    assert abs(sample.mean() - MEAN) < 0.01
    assert abs(sample.std() - DEVIATION) < 0.012


def test_ancestral_is_ddim_at_eta_one(diffusion):
    x, step_noise = noise(diffusion, 50)
    denoise, timesteps = gaussian_denoiser(diffusion), spaced_timesteps(1000, 20)
    torch.testing.assert_close(
        ancestral(denoise, diffusion, x, timesteps, step_noise),
        ddim(denoise, diffusion, x, timesteps, 1.0, step_noise),
        atol=1e-5,
        rtol=1e-4,
    )


def network(x, t):
    """Any fixed function will do as a network."""
    return torch.tanh(x * 0.7 + t.view(-1, 1, 1, 1) / 1000 - 0.3)


def test_ddim_is_that_of_diffusers(diffusion):
    scheduler = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2", clip_sample=True, timestep_spacing="leading"
    )
    scheduler.set_timesteps(50)
    torch.manual_seed(0)
    start = torch.randn(3, 3, 4, 4)
    theirs = start
    for t in scheduler.timesteps:
        output = network(theirs, t.expand(3))
        theirs = scheduler.step(output, t, theirs, use_clipped_model_output=True).prev_sample
    timesteps = [int(t) for t in scheduler.timesteps]
    ours = ddim(clipped(denoiser(diffusion, network)), diffusion, start, timesteps)
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=2e-3)


def test_ancestral_is_diffusers_ddpm(diffusion):
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=True)
    scheduler.set_timesteps(100)
    start = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    theirs = start
    for t in scheduler.timesteps:
        output = network(theirs, t.expand(2))
        theirs = scheduler.step(output, t, theirs, generator=generator).prev_sample
    again = torch.Generator().manual_seed(1)
    timesteps = [int(t) for t in scheduler.timesteps]
    ours = ancestral(
        clipped(denoiser(diffusion, network)),
        diffusion,
        start,
        timesteps,
        lambda step: torch.randn(start.shape, generator=again),
    )
    torch.testing.assert_close(ours, theirs, atol=5e-3, rtol=5e-3)


def test_one_step_is_the_denoisers_word(diffusion):
    x, _ = noise(diffusion, 4)
    expected = gaussian_denoiser(diffusion)(x, torch.full((4,), 999)).x0
    assert torch.equal(ddim(gaussian_denoiser(diffusion), diffusion, x, [999]), expected)


def test_what_cannot_be_sampled_is_refused(diffusion):
    x, step_noise = noise(diffusion, 2)
    with pytest.raises(ValueError, match="needs step_noise"):
        ddim(gaussian_denoiser(diffusion), diffusion, x, [9], eta=0.5)
    for sampler in (ddim, lambda *a: ancestral(*a, step_noise)):
        with pytest.raises(ValueError, match="expected at least one"):
            sampler(gaussian_denoiser(diffusion), diffusion, x, [])
