"""The variational bound, and the loss that trains a variance, against closed forms and scipy."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from scipy import stats
from torch import nn

from trainer.diffusion.bound import (
    binned_log_likelihood,
    bits_per_dim,
    bound_term,
    gaussian_divergence,
    gaussian_log_likelihood,
    prior_term,
)
from trainer.diffusion.loss import LossConfig, denoising_loss, error_weights
from trainer.diffusion.process import Diffusion, DiffusionConfig, Estimate
from trainer.rng import SampleRandom

PREDICTS = ["epsilon", "x0", "v"]


def test_divergence_and_density_are_torchs():
    torch.manual_seed(0)
    mean, log_var, other, other_var = torch.randn(4, 50)
    one = torch.distributions.Normal(mean, (0.5 * log_var).exp())
    two = torch.distributions.Normal(other, (0.5 * other_var).exp())
    expected = torch.distributions.kl_divergence(one, two)
    torch.testing.assert_close(gaussian_divergence(mean, log_var, other, other_var), expected)
    torch.testing.assert_close(gaussian_log_likelihood(other, mean, log_var), one.log_prob(other))


@pytest.mark.parametrize("deviation", [1e-3, 0.02, 0.7])
def test_a_bin_has_the_mass_that_scipy_says(deviation):
    x = torch.arange(256) / 127.5 - 1
    mean = torch.linspace(-0.9, 0.9, 256).flip(0) * 0.3
    ours = binned_log_likelihood(x, mean, torch.tensor(2 * math.log(deviation)))
    low, high = x.double().numpy() - 1 / 255, x.double().numpy() + 1 / 255
    low[0], high[-1] = -np.inf, np.inf
    m = mean.double().numpy()
    flip = np.where(x.numpy() > mean.numpy(), -1, 1)  # lower tails only: they do not cancel
    ends = np.sort(np.stack([flip * (low - m), flip * (high - m)]) / deviation, axis=0)
    tails = stats.norm.logcdf(ends)
    expected = tails[1] + np.log1p(-np.exp(np.minimum(tails[0] - tails[1], -1e-300)))
    np.testing.assert_allclose(ours, expected, rtol=2e-3, atol=2e-3)


def test_the_masses_of_all_bins_make_one():
    x = (torch.arange(256) / 127.5 - 1)[:, None]
    mean = torch.linspace(-1.2, 1.2, 7)
    mass = binned_log_likelihood(x, mean, torch.tensor(-3.0)).exp().sum(dim=0)
    torch.testing.assert_close(mass, torch.ones(7), atol=1e-4, rtol=0)


def reverse_variance(now: float, then: float, deviation: float) -> float:
    """Of x_then given x_now, where x_0 has this deviation: all three are Gaussian."""
    spread = then * deviation**2 + 1 - then
    return spread - now / then * spread**2 / (now * deviation**2 + 1 - now)


def test_the_bound_of_gaussian_data_is_its_entropy():
    """Under the exact denoiser and variance nothing is lost: each reverse step is a Gaussian."""
    deviation = 0.3
    diffusion = Diffusion(DiffusionConfig(steps=40, learned_variance=True))
    random = SampleRandom(0, torch.arange(4000))
    x0 = 0.4 + deviation * random.normal("x0", 8)
    alphas = [1.0, *diffusion.alphas.tolist()]
    variances = [reverse_variance(alphas[t + 1], alphas[t], deviation) for t in range(40)]

    def denoise(x, t):
        a, s = diffusion.levels(t, x)
        _, _, smallest, largest = diffusion.transition(t, x)
        wanted = torch.tensor(variances).log()[t].view(-1, 1)
        fraction = (wanted - smallest) / (largest - smallest)
        gain = a * deviation**2 / (a**2 * deviation**2 + s**2)
        return Estimate(0.4 + gain * (x - a * 0.4), fraction)

    bound = bits_per_dim(diffusion, denoise, x0, lambda t: random.normal(f"{t}", 8), levels=False)
    entropy = 0.5 * math.log2(2 * math.pi * math.e * deviation**2)
    assert bound.mean().item() == pytest.approx(entropy, abs=0.02)


def test_what_is_left_in_x_t_is_counted():
    diffusion = Diffusion(DiffusionConfig(schedule="linear", steps=4))
    x0 = torch.tensor([[0.5, -1.0]])
    last = diffusion.alphas[-1].float()
    mean = torch.distributions.Normal(last.sqrt() * x0, (1 - last).sqrt())
    expected = torch.distributions.kl_divergence(mean, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(prior_term(diffusion, x0), expected.mean(1) / math.log(2))


def noised(diffusion, t, channels=3):
    torch.manual_seed(0)
    x0 = torch.rand(len(t), channels, 2, 2) * 2 - 1
    noise = torch.randn_like(x0)
    return x0, noise, diffusion.add_noise(x0, t, noise)


def test_the_bound_is_the_same_for_all_parameterisations():
    """The same estimate of x_0, told as ε, x_0 or v, has the same bound and the same gradient."""
    t = torch.tensor([0, 1, 40, 500, 950])
    found = []
    for predicts in PREDICTS:
        diffusion = Diffusion(DiffusionConfig(predicts=predicts, learned_variance=True))
        x0, _, x_t = noised(diffusion, t)
        guess = 0.8 * x0 + 0.01
        told = diffusion.target(guess, t, diffusion.epsilon_from(guess, x_t, t))
        spread = torch.full_like(x0, 0.3, requires_grad=True)
        estimate = diffusion.estimate(torch.cat([told, spread], dim=1), x_t, t)
        term = bound_term(diffusion, estimate, x0, x_t, t, levels=True)
        term.sum().backward()
        found.append((term.detach(), spread.grad))
    for term, gradient in found[1:]:
        torch.testing.assert_close(term, found[0][0], rtol=2e-3, atol=1e-5)
        torch.testing.assert_close(gradient, found[0][1], rtol=2e-3, atol=1e-5)


def test_the_best_variance_is_that_of_the_data():
    """Minimising the bound finds the variance of x_t-1 given x_t, known for Gaussian data."""
    diffusion = Diffusion(DiffusionConfig(steps=20, learned_variance=True))
    random, deviation, step = SampleRandom(0, torch.arange(40_000)), 0.8, 6
    t = torch.full((40_000,), step)
    x0 = deviation * random.normal("x0", 1)
    x_t = diffusion.add_noise(x0, t, random.normal("noise", 1))
    now, then = (float(diffusion.alphas[step - i]) for i in (0, 1))
    gain = now**0.5 * deviation**2 / (now * deviation**2 + 1 - now)
    fractions = torch.linspace(0, 1, 101)
    terms = [
        bound_term(diffusion, Estimate(gain * x_t, f.expand_as(x_t)), x0, x_t, t, False).mean()
        for f in fractions
    ]
    best = fractions[torch.stack(terms).argmin()].item()
    small = (1 - then) / (1 - now) * (1 - now / then)
    exact = reverse_variance(now, then, deviation)
    wanted = math.log(exact / small) / math.log((1 - now / then) / small)
    assert 0.1 < wanted < 0.9
    assert best == pytest.approx(wanted, abs=0.03)


@pytest.mark.parametrize("predicts", PREDICTS)
def test_through_the_bound_the_mean_is_not_moved(predicts):
    diffusion = Diffusion(DiffusionConfig(predicts=predicts, learned_variance=True))
    t = torch.tensor([0, 5, 700])
    x0, noise, _ = noised(diffusion, t)
    output = torch.randn(3, 6, 2, 2, requires_grad=True)

    def gradient(weight):
        loss = denoising_loss(diffusion, LossConfig(bound=weight), output, x0, t, noise, True)
        (found,) = torch.autograd.grad(loss.sum(), output)
        return found

    plain, hybrid = gradient(0.0), gradient(0.001)
    torch.testing.assert_close(plain[:, :3], hybrid[:, :3])
    assert (plain[:, 3:] == 0).all()
    assert (hybrid[:, 3:] != 0).all()


def test_the_hybrid_loss_weighs_the_whole_bound():
    """L_vlb is a sum over T steps, of which one is drawn: λ · T · L_t is added to the error."""
    t = torch.tensor([3, 500])
    plain, learned = (
        Diffusion(DiffusionConfig(predicts="v", learned_variance=learned))
        for learned in (False, True)
    )
    x0, noise, x_t = noised(plain, t)
    output = torch.randn(2, 6, 2, 2)
    both = denoising_loss(learned, LossConfig(), output, x0, t, noise, levels=True)
    error = denoising_loss(plain, LossConfig(), output[:, :3], x0, t, noise, levels=True)
    term = bound_term(learned, learned.estimate(output, x_t, t), x0, x_t, t, levels=True)
    torch.testing.assert_close(both, error + 0.001 * 1000 * term)


@pytest.mark.parametrize("predicts", PREDICTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_small_network_learns_its_variance_without_a_nan(predicts, dtype):
    """Elsewhere log(0) at t = 0 made the first steps of small networks NaN."""
    torch.manual_seed(0)
    diffusion = Diffusion(DiffusionConfig(predicts=predicts, learned_variance=True))
    network = nn.Conv2d(3, 6, 3, padding=1).to(dtype)
    masters = [p.detach().float().requires_grad_() for p in network.parameters()]
    optimizer = torch.optim.Adam(masters, lr=0.02)
    for step in range(40):
        for weight, master in zip(network.parameters(), masters, strict=True):
            weight.data.copy_(master)
        t = (torch.arange(32) * 37 * (step + 1)) % 1000
        t[:4] = torch.tensor([0, 1, 2, 999])
        x0 = torch.rand(32, 3, 4, 4).round() * 2 - 1  # black and white: the outermost bins
        noise = torch.randn_like(x0)
        output = network(diffusion.add_noise(x0, t, noise).to(dtype))
        loss = denoising_loss(diffusion, LossConfig(), output, x0, t, noise, levels=True).mean()
        assert loss.isfinite()
        network.zero_grad()
        loss.backward()
        for weight, master in zip(network.parameters(), masters, strict=True):
            assert weight.grad is not None
            assert weight.grad.isfinite().all()
            master.grad = weight.grad.float()
        optimizer.step()


def test_the_bound_is_finite_wherever_a_network_may_be():
    diffusion = Diffusion(DiffusionConfig(predicts="x0", learned_variance=True))
    t = torch.arange(1000)
    x0, noise, _ = noised(diffusion, t)
    for spread in (-20.0, 0.0, 20.0):
        output = torch.cat([torch.zeros_like(x0), torch.full_like(x0, spread)], dim=1)
        output.requires_grad_()
        loss = denoising_loss(diffusion, LossConfig(), output, x0, t, noise, levels=True)
        (gradient,) = torch.autograd.grad(loss.sum(), output)
        assert loss.isfinite().all()
        assert gradient.isfinite().all()


def test_min_snr_and_p2_weigh_the_same_error_the_same_however_it_is_told():
    t = torch.tensor([1, 100, 400, 700, 990])
    for config in (LossConfig("min_snr"), LossConfig("p2"), LossConfig("p2", gamma=0.5)):
        losses = []
        for predicts in PREDICTS:
            diffusion = Diffusion(DiffusionConfig(predicts=predicts))
            x0, noise, x_t = noised(diffusion, t)
            guess = 0.7 * x0
            told = diffusion.target(guess, t, diffusion.epsilon_from(guess, x_t, t))
            losses.append(denoising_loss(diffusion, config, told, x0, t, noise, levels=True))
        for loss in losses[1:]:
            torch.testing.assert_close(loss, losses[0], rtol=5e-3, atol=1e-7)


def test_weights_are_those_of_the_papers():
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    t = torch.tensor([0, 50, 300, 600, 900])
    snr = compute_snr(scheduler, t)

    def weights(predicts, config):
        return error_weights(Diffusion(DiffusionConfig(predicts=predicts)), config, t)

    least = snr.clamp(max=5)
    torch.testing.assert_close(
        weights("epsilon", LossConfig("min_snr")), least / snr, rtol=1e-2, atol=1e-6
    )
    torch.testing.assert_close(
        weights("v", LossConfig("min_snr")), least / (snr + 1), rtol=1e-2, atol=1e-6
    )
    torch.testing.assert_close(weights("x0", LossConfig("min_snr")), least, rtol=1e-2, atol=1e-6)
    p2 = LossConfig("p2", gamma=0.5, p2_k=2.0)
    torch.testing.assert_close(weights("epsilon", p2), (2 + snr) ** -0.5, rtol=1e-2, atol=1e-6)
    for predicts in PREDICTS:
        assert (weights(predicts, LossConfig()) == 1).all()


@pytest.mark.parametrize("weighting", ["min_snr", "p2"])
def test_weights_stay_finite_where_no_signal_is_left(weighting):
    for predicts in ("x0", "v"):
        diffusion = Diffusion(DiffusionConfig(predicts=predicts, zero_terminal_snr=True))
        weights = error_weights(diffusion, LossConfig(weighting), torch.arange(1000))
        assert weights.isfinite().all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gamma": 5.0}, "gamma: got 5.0 with weighting uniform"),
        ({"weighting": "p2", "p2_k": -1.0}, "p2_k: got -1.0, expected at least 0"),
        ({"bound": -0.1}, "bound: got -0.1"),
    ],
)
def test_a_loss_that_makes_no_sense_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        LossConfig(**values)
