"""Learned variance in the stages: networks and configs that do not agree are told in one line."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from base.errors import UserError
from trainer.batch import Batch
from trainer.diffusion.loss import LossConfig
from trainer.diffusion.process import DiffusionConfig
from trainer.models.upsampler import Upsampler
from trainer.objectives.upsampler import UpsamplerObjective, UpsamplerObjectiveConfig
from trainer.rng import SampleRandom
from trainer.stages import STAGES, load_train_config

CONFIGS = Path(__file__).parents[3] / "configs" / "micro"
LEARNED = "objective.diffusion.learned_variance=true"


@pytest.mark.parametrize("name", ["decoder", "up64"])
@pytest.mark.parametrize(("channels", "learned"), [(3, "true"), (6, "false")])
def test_channels_and_learned_variance_must_agree(name, channels, learned):
    more = [LEARNED.replace("true", learned), f"model.unet.out_channels={channels}"]
    config = load_train_config(CONFIGS / f"{name}.yaml", more)
    expected = (
        rf"model\.unet\.out_channels: got {channels}, expected {9 - channels} with .*: {learned}$"
    )
    with pytest.raises(UserError, match=expected):
        STAGES[config.stage].build(config, torch.device("cpu"))


def test_a_prior_learns_no_variance():
    with pytest.raises(UserError, match=r"learned_variance: got true, expected false"):
        load_train_config(CONFIGS / "prior.yaml", [LEARNED])


def test_a_stage_trains_its_variance():
    """The fresh network is in the middle of the range; then the bound moves its second half."""
    more = [LEARNED, "model.unet.out_channels=6", "objective.loss.weighting=min_snr"]
    config = load_train_config(CONFIGS / "up64.yaml", more)
    torch.manual_seed(0)
    model, objective = STAGES["upsampler"].build(config, torch.device("cpu"))
    assert isinstance(model, Upsampler)
    side = objective.needs.crop or objective.needs.image_size
    image = torch.randint(0, 256, (4, 3, side, side), dtype=torch.uint8)
    batch = Batch(torch.arange(4), image)
    (last,) = [layer for layer in [*model.unet.modules()][-1:] if isinstance(layer, nn.Conv2d)]
    assert last.weight.shape[0] == 6 * config.model.unet.patch**2
    loss = objective.loss(model, batch, SampleRandom(0, batch.positions), None, 0)
    loss.mean().backward()
    assert loss.isfinite().all()
    assert last.bias is not None
    assert last.bias.grad is not None
    assert (last.bias.grad != 0).all()


def test_a_weighting_weighs_the_losses_of_a_stage():
    image = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    batch = Batch(torch.arange(8), image)
    plain = UpsamplerObjectiveConfig(16, crop=None, diffusion=DiffusionConfig(predicts="v"))

    def losses(config):
        objective, random = UpsamplerObjective(config), SampleRandom(0, batch.positions)
        return objective.loss(lambda x, t, small: torch.zeros_like(x), batch, random, None, 0)

    weighted = losses(dataclasses.replace(plain, loss=LossConfig("min_snr")))
    assert (weighted < losses(plain)).all()  # v weighs min(SNR, 5) / (SNR + 1)
    assert losses(dataclasses.replace(plain, loss=LossConfig(bound=9.0))).equal(losses(plain))
