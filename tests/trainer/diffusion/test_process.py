"""Schedules, the forward process and its parameterisations."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from hypothesis import given
from hypothesis import strategies as st

from base.errors import UserError
from trainer.diffusion.process import Diffusion, DiffusionConfig, mean_squared_error
from trainer.diffusion.schedules import alphas_cumprod, spaced_timesteps, zero_terminal_snr
from trainer.stages import load_train_config


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("cosine", {"beta_schedule": "squaredcos_cap_v2"}), ("linear", {"beta_schedule": "linear"})],
)
def test_schedules_are_those_of_diffusers(ours, theirs):
    expected = DDPMScheduler(num_train_timesteps=1000, **theirs).alphas_cumprod
    torch.testing.assert_close(alphas_cumprod(ours, 1000), expected.double(), rtol=2e-3, atol=2e-6)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("steps", [10, 250, 4000])
def test_noise_grows(schedule, steps):
    alphas = alphas_cumprod(schedule, steps)
    assert len(alphas) == steps
    assert (alphas.diff() < 0).all()
    assert 0 < alphas[-1] < 1e-2
    assert alphas[0] < 1


@given(st.integers(1, 1000).flatmap(lambda n: st.tuples(st.integers(1, n), st.just(n))))
def test_spaced_timesteps_are_distinct_and_hold_both_ends(pair):
    steps, total = pair
    chosen = spaced_timesteps(total, steps)
    assert len(chosen) == steps
    assert chosen[0] == total - 1
    assert chosen == sorted(set(chosen), reverse=True)
    if steps > 1:
        assert chosen[-1] == 0
        assert np.ptp(np.diff(chosen)) <= 1


@pytest.mark.parametrize("steps", [1, 7, 10, 50, 64, 999, 1000])
def test_trailing_timesteps_are_those_of_diffusers(steps):
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    assert spaced_timesteps(1000, steps, "trailing") == scheduler.timesteps.tolist()


@pytest.mark.parametrize("steps", [0, 11])
def test_more_steps_than_there_are_is_refused(steps):
    with pytest.raises(ValueError, match="expected 1 to 10"):
        spaced_timesteps(10, steps)


@pytest.mark.parametrize("predicts", ["epsilon", "x0", "v"])
def test_a_perfect_network_gives_back_x0(predicts):
    diffusion = Diffusion(DiffusionConfig(predicts=predicts))
    torch.manual_seed(0)
    x0, noise = torch.randn(5, 3, 4, 4), torch.randn(5, 3, 4, 4)
    t = torch.tensor([0, 10, 300, 700, 900])
    x_t = diffusion.add_noise(x0, t, noise)
    estimate = diffusion.x0_from(diffusion.target(x0, t, noise), x_t, t)
    torch.testing.assert_close(estimate, x0, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(diffusion.epsilon_from(x0, x_t, t), noise, atol=2e-3, rtol=1e-3)


def test_v_is_that_of_diffusers():
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    diffusion = Diffusion(DiffusionConfig(predicts="v"))
    torch.manual_seed(0)
    x0, noise, t = torch.randn(4, 6), torch.randn(4, 6), torch.tensor([1, 100, 500, 990])
    torch.testing.assert_close(
        diffusion.target(x0, t, noise), scheduler.get_velocity(x0, noise, t), atol=1e-3, rtol=1e-3
    )
    torch.testing.assert_close(
        diffusion.add_noise(x0, t, noise), scheduler.add_noise(x0, noise, t), atol=1e-3, rtol=1e-3
    )


def test_the_error_is_taken_in_fp32():
    output = torch.full((2, 1000), 1.0, dtype=torch.bfloat16)
    error = mean_squared_error(output, torch.full((2, 1000), 1.001))
    assert error.dtype == torch.float32
    torch.testing.assert_close(error, torch.full((2,), 1e-6), rtol=1e-3, atol=0)


def test_a_learned_variance_is_the_second_half_of_the_channels():
    """A fresh network's 0 is the middle of the range."""
    diffusion = Diffusion(DiffusionConfig(predicts="x0", learned_variance=True))
    output = torch.cat([torch.full((2, 3, 4, 4), 5.0), torch.zeros(2, 3, 4, 4)], dim=1).half()
    found = diffusion.estimate(output, torch.zeros(2, 3, 4, 4), torch.tensor([3, 9]))
    assert found.fraction is not None
    assert found.x0.dtype == found.fraction.dtype == torch.float32
    assert (found.x0 == 5).all()
    assert (found.fraction == 0.5).all()


@pytest.mark.parametrize(("learned", "channels"), [(True, 3), (False, 6)])
def test_a_network_with_other_channels_is_refused(learned, channels):
    diffusion = Diffusion(DiffusionConfig(learned_variance=learned))
    with pytest.raises(ValueError, match=f"out_channels: got {channels}, expected {9 - channels} "):
        diffusion.estimate(
            torch.zeros(1, channels, 2, 2), torch.zeros(1, 3, 2, 2), torch.tensor([1])
        )


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_zero_terminal_snr_is_that_of_diffusers(schedule):
    plain = alphas_cumprod(schedule, 1000)
    ours = zero_terminal_snr(plain)
    betas = 1 - plain / torch.cat([torch.ones(1, dtype=torch.float64), plain[:-1]])
    theirs = torch.cumprod(1 - rescale_zero_terminal_snr(betas), dim=0)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-9)
    assert ours[-1] == 0
    assert ours[0] == pytest.approx(plain[0].item(), abs=1e-15)


@pytest.mark.parametrize("predicts", ["x0", "v"])
def test_with_zero_terminal_snr_x_t_is_noise_and_x0_can_still_be_told(predicts):
    diffusion = Diffusion(DiffusionConfig(predicts=predicts, zero_terminal_snr=True))
    x0, noise, t = torch.randn(2, 5), torch.randn(2, 5), torch.full((2,), 999)
    assert torch.equal(diffusion.add_noise(x0, t, noise), noise)
    output = diffusion.target(x0, t, noise)
    torch.testing.assert_close(diffusion.x0_from(output, noise, t), x0)


def test_zero_terminal_snr_is_refused_where_epsilon_is_predicted(tmp_path):
    with pytest.raises(ValueError, match="zero_terminal_snr: got true with predicts epsilon"):
        DiffusionConfig(zero_terminal_snr=True)
    config = Path(__file__).parents[3] / "configs" / "micro" / "decoder.yaml"
    more = ["objective.diffusion.predicts=epsilon", "objective.diffusion.zero_terminal_snr=true"]
    with pytest.raises(UserError) as caught:
        load_train_config(config, more)
    assert "zero_terminal_snr: got true with predicts epsilon" in str(caught.value)
    assert "\n" not in str(caught.value)
