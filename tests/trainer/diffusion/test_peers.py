"""Samplers against diffusers' schedulers of the same names: same inputs, timesteps and noise."""

import pytest
import torch
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    HeunDiscreteScheduler,
    UnCLIPScheduler,
)

from trainer.diffusion.denoiser import denoiser
from trainer.diffusion.process import Diffusion, DiffusionConfig, Estimate
from trainer.diffusion.samplers import ancestral, ddim, ddim_inversion, dpm_solver, heun
from trainer.diffusion.schedules import spaced_timesteps
from trainer.diffusion.thresholds import clipped, dynamically_thresholded

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
PREDICTS = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}


def network(x, t):
    """Any fixed function will do as a network."""
    return torch.tanh(x * 0.7 + t.view(-1, 1, 1, 1) / 1000 - 0.3)


def ranged_network(x, t):
    """With a second half that stays neither in the middle nor within [-1, 1]."""
    return torch.cat([network(x, t), 1.2 * torch.cos(3 * x + t.view(-1, 1, 1, 1))], dim=1)


def start():
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def noises():
    """Noise as a scheduler draws it, and as a sampler asks for it, from the same numbers."""
    theirs, ours = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    return theirs, lambda step: torch.randn(2, 3, 4, 4, generator=ours)


def walked(scheduler, net, x, **more):
    """The scheduler's own way through its timesteps."""
    for t in scheduler.timesteps:
        given = scheduler.scale_model_input(x, t)
        output = net(given, t.expand(len(x)))
        x = scheduler.step(output, t, x, **more).prev_sample
    return x


def steps_of(scheduler):
    return [int(t) for t in scheduler.timesteps]


def agree(ours, theirs, tolerance=2e-3):
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("predicts", PREDICTS)
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim(predicts, eta):
    scheduler = DDIMScheduler(
        **COSINE,
        clip_sample=True,
        timestep_spacing="leading",
        set_alpha_to_one=True,
        prediction_type=PREDICTS[predicts],
    )
    scheduler.set_timesteps(50)
    generator, step_noise = noises()
    theirs = walked(
        scheduler, network, start(), use_clipped_model_output=True, eta=eta, generator=generator
    )
    diffusion = Diffusion(DiffusionConfig(predicts=predicts))
    denoise = clipped(denoiser(diffusion, network))
    agree(ddim(denoise, diffusion, start(), steps_of(scheduler), eta, step_noise), theirs)


@pytest.mark.parametrize("predicts", PREDICTS)
@pytest.mark.parametrize("quantile", [0.9, 0.995])
def test_dynamic_thresholds(predicts, quantile):
    """Of two samples, one of them three times as wide: each has its own limit."""
    scheduler = DDIMScheduler(
        **COSINE,
        thresholding=True,
        dynamic_thresholding_ratio=quantile,
        sample_max_value=1e9,  # theirs may end; ours has no largest limit, nor has the paper
        timestep_spacing="leading",
        set_alpha_to_one=True,
        prediction_type=PREDICTS[predicts],
    )
    scheduler.set_timesteps(50)
    x = start() * torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)

    def wide_network(x, t):
        return 2 * network(x, t)

    theirs = walked(scheduler, wide_network, x, use_clipped_model_output=True)
    diffusion = Diffusion(DiffusionConfig(predicts=predicts))
    denoise = dynamically_thresholded(denoiser(diffusion, wide_network), quantile)
    agree(ddim(denoise, diffusion, x, steps_of(scheduler)), theirs)


@pytest.mark.parametrize("predicts", PREDICTS)
@pytest.mark.parametrize("learned", [False, True])
def test_ancestral_is_ddpm(predicts, learned):
    scheduler = DDPMScheduler(
        **COSINE,
        clip_sample=True,
        prediction_type=PREDICTS[predicts],
        variance_type="learned_range" if learned else "fixed_small",
    )
    scheduler.set_timesteps(100)
    net = ranged_network if learned else network
    generator, step_noise = noises()
    theirs = walked(scheduler, net, start(), generator=generator)
    diffusion = Diffusion(DiffusionConfig(predicts=predicts, learned_variance=learned))
    denoise = clipped(denoiser(diffusion, net))
    agree(ancestral(denoise, diffusion, start(), steps_of(scheduler), step_noise), theirs, 5e-3)


@pytest.mark.parametrize(
    ("predicts", "learned", "limit"),
    [("x0", False, 5.0), ("epsilon", True, 1.0), ("epsilon", False, 1.0)],
    ids=["prior", "decoder", "super-resolution"],
)
def test_ancestral_is_unclips(predicts, learned, limit):
    """Karlo's three schedulers, with their timesteps, which are ours."""
    scheduler = UnCLIPScheduler(
        variance_type="learned_range" if learned else "fixed_small_log",
        clip_sample_range=limit,
        prediction_type=PREDICTS[predicts],
    )
    scheduler.set_timesteps(25)
    assert steps_of(scheduler) == spaced_timesteps(1000, 25)
    net = ranged_network if learned else network
    generator, step_noise = noises()
    theirs, after = start(), [*steps_of(scheduler)[1:], None]
    for t, then in zip(scheduler.timesteps, after, strict=True):
        output = net(theirs, t.expand(2))
        theirs = scheduler.step(
            output, t, theirs, prev_timestep=then, generator=generator
        ).prev_sample
    diffusion = Diffusion(DiffusionConfig(predicts=predicts, learned_variance=learned))
    denoise = clipped(denoiser(diffusion, net), limit)
    agree(ancestral(denoise, diffusion, start(), spaced_timesteps(1000, 25), step_noise), theirs)


def test_inversion_is_ddims():
    """diffusers asks the network about the timestep that it goes to, with x of where it is."""
    scheduler = DDIMInverseScheduler(**COSINE, clip_sample=False, timestep_spacing="leading")
    scheduler.set_timesteps(50)
    asked = iter(scheduler.timesteps)
    diffusion = Diffusion(DiffusionConfig())

    def denoise(x, t):
        output = network(x, next(asked).expand(2))
        return Estimate(diffusion.x0_from(output, x, t))

    x0 = start().clamp(-1, 1)
    ours = ddim_inversion(denoise, diffusion, x0, steps_of(scheduler)[::-1])
    agree(ours, walked(scheduler, network, x0))


@pytest.mark.parametrize("predicts", PREDICTS)
@pytest.mark.parametrize("steps", [10, 20])
def test_dpm_solver_is_multistep(predicts, steps):
    scheduler = DPMSolverMultistepScheduler(
        beta_schedule="linear",
        beta_start=1e-4,
        beta_end=0.02,
        algorithm_type="dpmsolver++",
        solver_order=2,
        timestep_spacing="trailing",
        final_sigmas_type="zero",
        prediction_type=PREDICTS[predicts],
    )
    scheduler.set_timesteps(steps)
    timesteps = spaced_timesteps(1000, steps, "trailing")
    assert steps_of(scheduler) == timesteps
    diffusion = Diffusion(DiffusionConfig(schedule="linear", predicts=predicts))
    ours = dpm_solver(denoiser(diffusion, network), diffusion, start(), timesteps)
    agree(ours, walked(scheduler, network, start()))


@pytest.mark.parametrize("predicts", PREDICTS)
def test_heun_is_heuns(predicts):
    """Its x is divided by √ᾱ; with 28 timesteps none lies between two of the network's."""
    scheduler = HeunDiscreteScheduler(
        beta_schedule="linear",
        beta_start=1e-4,
        beta_end=0.02,
        timestep_spacing="linspace",
        prediction_type=PREDICTS[predicts],
    )
    scheduler.set_timesteps(28)
    timesteps = spaced_timesteps(1000, 28)
    assert steps_of(scheduler)[::2] == timesteps
    diffusion = Diffusion(DiffusionConfig(schedule="linear", predicts=predicts))
    ours = heun(denoiser(diffusion, network), diffusion, start(), timesteps)
    scaled = start() / diffusion.alphas[-1].sqrt().float()

    def whole_timesteps(x, t):
        return network(x, t.round().long())

    agree(ours, walked(scheduler, whole_timesteps, scaled))
