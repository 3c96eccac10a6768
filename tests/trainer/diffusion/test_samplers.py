"""Samplers against the closed form on Gaussian data; test_peers.py has them against diffusers."""

import math

import pytest
import torch

from trainer.diffusion.process import Diffusion, DiffusionConfig, Estimate
from trainer.diffusion.samplers import (
    analytic,
    ancestral,
    ddim,
    ddim_inversion,
    dpm_solver,
    heun,
)
from trainer.diffusion.samplers.analytic import optimal_variance
from trainer.diffusion.schedules import spaced_timesteps
from trainer.diffusion.scores import ScoreNorms
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


FINE = Diffusion(DiffusionConfig(steps=20_001))  # so many timesteps that their ends are clean


def flow_error(sampler, steps: int) -> float:
    """Of a deterministic sampler: how far x_0 is from where the probability flow leads."""
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    spacing = "trailing" if sampler is dpm_solver else "even"
    timesteps = spaced_timesteps(20_001, steps, spacing)
    found = sampler(gaussian_denoiser(FINE), FINE, x, timesteps)
    return (found - (MEAN + DEVIATION * x)).abs().max().item()


@pytest.mark.parametrize(
    ("sampler", "first", "least", "most"),
    [(ddim, 41, 0.9, 1.1), (dpm_solver, 20, 2.0, 5.0), (heun, 41, 1.9, 2.2)],
)
def test_errors_shrink_with_the_order_of_a_sampler(sampler, first, least, most):
    """Twice the steps leave half the error of a first order, a quarter of a second."""
    errors = [flow_error(sampler, steps) for steps in (first, 2 * first, 4 * first)]
    orders = [math.log2(errors[i] / errors[i + 1]) for i in (0, 1)]
    assert all(least < order < most for order in orders), (errors, orders)


def test_second_order_is_better_at_few_steps():
    first, multistep, two_calls = (flow_error(s, 20) for s in (ddim, dpm_solver, heun))
    assert multistep < first / 3
    assert two_calls < first / 3


@pytest.mark.parametrize("steps", [5, 25])
def test_analytic_has_the_datas_moments_at_any_number_of_steps(diffusion, steps):
    """Each reverse step of Gaussian data is a Gaussian, whose variance Γ gives exactly."""
    x, step_noise = noise(diffusion, 40_000)
    denoise, timesteps = gaussian_denoiser(diffusion), spaced_timesteps(1000, steps)
    alphas = diffusion.alphas.tolist()
    gamma = {t: 1 / (alphas[t] * DEVIATION**2 + 1 - alphas[t]) for t in timesteps}
    sample = analytic(denoise, diffusion, x, timesteps, step_noise, gamma)
    assert abs(sample.mean() - MEAN) < 0.005
    assert abs(sample.std() - DEVIATION) < 0.005
    if steps == 5:  # β̃ is far too small between so few timesteps
        assert ancestral(denoise, diffusion, x, timesteps, step_noise).std() < DEVIATION - 0.03


def test_the_optimal_variance_is_the_papers():
    """Bao et al. 2022, eq. 8 as it stands there, and its bounds."""
    now, then, score = 0.3, 0.6, 1.1
    alpha, noise_now, noise_then = now / then, 1 - now, 1 - then
    least = noise_then / noise_now * (1 - alpha)
    width = math.sqrt(noise_now / alpha) - math.sqrt(noise_then - least)
    paper = least + width**2 * (1 - noise_now * score)
    assert optimal_variance(now, then, score) == pytest.approx(paper, rel=1e-12)
    assert optimal_variance(now, then, 9.0) == pytest.approx(least, rel=1e-12)
    assert optimal_variance(now, then, -1.0) == pytest.approx(least + width**2, rel=1e-12)
    assert optimal_variance(0.0, then, 0.4) == pytest.approx(noise_then, rel=1e-12)


def test_the_noise_of_the_last_noisy_step_is_limited(diffusion):
    """Its mean size is; that of the steps before is as it was."""
    _, step_noise = noise(diffusion)
    gamma = dict.fromkeys((900, 300, 100), 0.5)

    def sizes(limit):
        found = []

        def black(x, t):
            found.append(x.abs().mean().item())
            return Estimate(torch.zeros_like(x))

        timesteps, start = [900, 300, 100], torch.zeros(20_000, 1)
        analytic(black, diffusion, start, timesteps, step_noise, gamma, limit)
        return found

    free, held = sizes(None), sizes(0.05)
    assert held[1] == free[1] > 0.1
    before = free[1] * (diffusion.alphas[300] / diffusion.alphas[100]).sqrt()
    before = before * (1 - diffusion.alphas[100]) / (1 - diffusion.alphas[300])
    assert held[2] == pytest.approx((before**2 + 0.05**2).sqrt().item(), rel=0.02)
    assert free[2] > 1.3 * held[2]


def test_scores_are_gathered_batch_by_batch(diffusion):
    """In batches of any size the mean over all samples; for Gaussian data the known one."""
    random, timesteps = SampleRandom(0, torch.arange(3000)), [10, 400, 999]
    x0 = MEAN + DEVIATION * random.normal("x0", 4)
    noises = {t: random.normal(f"{t}", 4) for t in timesteps}
    denoise = gaussian_denoiser(diffusion)
    whole, parts = ScoreNorms(diffusion, timesteps), ScoreNorms(diffusion, timesteps)
    whole.add(denoise, x0, noises.__getitem__)
    for first, end in ((0, 1), (1, 1000), (1000, 3000)):
        parts.add(denoise, x0[first:end], lambda t, f=first, e=end: noises[t][f:e])
    assert whole.samples == parts.samples == 3000
    for t in timesteps:
        alpha = float(diffusion.alphas[t])
        assert parts.gamma()[t] == pytest.approx(whole.gamma()[t], rel=1e-6)
        exact = 1 / (alpha * DEVIATION**2 + 1 - alpha)
        assert whole.gamma()[t] == pytest.approx(exact, rel=0.03)


def test_inversion_leads_to_the_noise_of_the_data(diffusion):
    """The flow from x_0 ends at (x_0 - MEAN) / DEVIATION; more timesteps come nearer."""
    x0 = MEAN + DEVIATION * torch.linspace(-2, 2, 9)[:, None]
    noises, denoise = torch.linspace(-2, 2, 9)[:, None], gaussian_denoiser(diffusion)
    errors = []
    for steps in (50, 1000):
        found = ddim_inversion(denoise, diffusion, x0, spaced_timesteps(1000, steps))
        errors.append((found - noises).abs().max().item())
    assert errors[1] < 0.02
    assert errors[1] < errors[0] / 5


def test_refined_inversion_is_the_inverse_of_ddim(diffusion):
    denoise, timesteps = gaussian_denoiser(diffusion), spaced_timesteps(1000, 50)[2:]
    x0 = MEAN + DEVIATION * torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    apart = []
    for refinements in (0, 1, 8):
        noises = ddim_inversion(denoise, diffusion, x0, timesteps, refinements)
        apart.append((ddim(denoise, diffusion, noises, timesteps) - x0).abs().max().item())
    assert apart[0] < 0.1
    assert apart[1] < apart[0] / 2
    assert apart[2] < 1e-3


@pytest.mark.parametrize("sampler", ["ddim", "ancestral", "dpm++", "heun"])
def test_samplers_begin_without_any_signal(sampler):
    """With zero terminal SNR σ and λ are infinite at the first timestep."""
    diffusion = Diffusion(DiffusionConfig(predicts="v", zero_terminal_snr=True))
    x, step_noise = noise(diffusion)
    denoise, timesteps = gaussian_denoiser(diffusion), spaced_timesteps(1000, 100)
    sample = {
        "ddim": ddim,
        "ancestral": lambda *a: ancestral(*a, step_noise),
        "dpm++": dpm_solver,
        "heun": heun,
    }[sampler](denoise, diffusion, x, timesteps)
    assert abs(sample.mean() - MEAN) < 0.01
    assert abs(sample.std() - DEVIATION) < 0.02


def test_one_step_is_the_denoisers_word(diffusion):
    x, _ = noise(diffusion, 4)
    expected = gaussian_denoiser(diffusion)(x, torch.full((4,), 999)).x0
    assert torch.equal(ddim(gaussian_denoiser(diffusion), diffusion, x, [999]), expected)


def test_what_cannot_be_sampled_is_refused(diffusion):
    x, step_noise = noise(diffusion, 2)
    with pytest.raises(ValueError, match="needs step_noise"):
        ddim(gaussian_denoiser(diffusion), diffusion, x, [9], eta=0.5)
    samplers = [ddim, ddim_inversion, dpm_solver, heun, lambda *a: ancestral(*a, step_noise)]
    for sampler in [*samplers, lambda *a: analytic(*a, step_noise, {})]:
        with pytest.raises(ValueError, match="expected at least one"):
            sampler(gaussian_denoiser(diffusion), diffusion, x, [])
        with pytest.raises(ValueError, match="expected each below the one before"):
            sampler(gaussian_denoiser(diffusion), diffusion, x, [5, 9])
    with pytest.raises(ValueError, match="gamma: got none of timestep 4"):
        analytic(gaussian_denoiser(diffusion), diffusion, x, [9, 4], step_noise, {9: 1.0})
    with pytest.raises(ValueError, match="refinements: got -1"):
        ddim_inversion(gaussian_denoiser(diffusion), diffusion, x, [9, 4], -1)
