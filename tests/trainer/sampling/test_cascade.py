"""The cascade on networks with random weights: what belongs to a caption's position stays there."""

import dataclasses
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import nn

from trainer.diffusion.process import Diffusion, DiffusionConfig
from trainer.models.ar_prior import ArPrior, ArPriorConfig
from trainer.models.clip import Clip, ClipConfig, TextConfig, TextEncoder, VisionConfig
from trainer.models.decoder import Decoder, DecoderConfig
from trainer.models.prior import DiffusionPrior, PriorConfig
from trainer.models.unet import UNetConfig
from trainer.models.upsampler import Upsampler, UpsamplerConfig
from trainer.objectives.decoder import DecoderObjectiveConfig
from trainer.objectives.prior import PriorObjectiveConfig
from trainer.objectives.upsampler import UpsamplerObjectiveConfig
from trainer.sampling.ar_prior import ArPart
from trainer.sampling.cascade import Cascade
from trainer.sampling.config import CascadeConfig, DecoderPart, PartConfig, PriorPart
from trainer.sampling.parts import Part

CPU = torch.device("cpu")
Sampler = Literal["ddim", "ancestral"]
CAPTIONS = ["a red circle", "two words", "a blue square under snow", "", "the last one"]
CLIP = ClipConfig(
    16, VisionConfig(32, 32, 1, head_width=16), TextConfig(32, 1, 2, context_length=12)
)
PRIOR = PriorConfig(16, 32, 12, layers=1, heads=2, head_width=16)
UNET = UNetConfig(
    channels=16, multipliers=(1, 2), blocks=1, attention_levels=(1,), head_width=16,
    context_width=24,
)  # fmt: skip
CLEAN = DiffusionConfig(predicts="x0")  # random networks then leave pixels between black and white
UP = UNetConfig(in_channels=6, channels=16, multipliers=(1, 2), blocks=1, scale_shift=False)


def part(network: nn.Module, settings: Any, config: Any, objective: Any) -> Part:
    """A network whose every weight is random: those that begin as zero would hide its inputs."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data.normal_(0.0, 0.2, generator=generator)
    network = network.eval().requires_grad_(False)
    told: Any = SimpleNamespace(model=config, objective=objective)
    return Part(settings, told, network, Diffusion(objective.diffusion))


def cascade(sampler: Sampler) -> Cascade:
    torch.manual_seed(0)
    text = TextEncoder(
        Clip(CLIP).eval().requires_grad_(False).clip, SimpleTokenizer(context_length=12)
    )
    prior = PriorPart(run="prior", steps=3, sampler=sampler, guidance=2.0)
    decoder = DecoderPart(run="decoder", steps=3, sampler=sampler)
    larger = PartConfig(run="up", steps=2, sampler=sampler)
    decoder_config = DecoderConfig(UNET, embedding_dim=16, text_width=32)
    up_objective = UpsamplerObjectiveConfig(image_size=32, crop=8, factor=4, diffusion=CLEAN)
    return Cascade(
        CascadeConfig(clip="clip", prior=prior, decoder=decoder, upsamplers=(larger,)),
        CPU,
        text,
        part(DiffusionPrior(PRIOR), prior, PRIOR, PriorObjectiveConfig(diffusion=CLEAN)),
        part(
            Decoder(decoder_config),
            decoder,
            decoder_config,
            DecoderObjectiveConfig(image_size=8, diffusion=CLEAN),
        ),
        (part(Upsampler(UpsamplerConfig(UP)), larger, UpsamplerConfig(UP), up_objective),),
    )


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
def test_a_picture_is_the_same_in_any_batch(sampler: Sampler) -> None:
    """Up to the rounding of products of another shape: a level of 255, rarely."""
    model = cascade(sampler)
    whole = model.generate(CAPTIONS, seed=3)
    assert whole.shape == (5, 3, 32, 32)
    parts = torch.cat([model.generate(CAPTIONS[i : i + 2], 3, first=i) for i in (0, 2, 4)])
    difference = (whole.int() - parts.int()).abs()
    assert difference.max() <= 1
    assert difference.float().mean() < 0.01


def test_position_seed_and_caption_each_make_another_picture() -> None:
    model = cascade("ddim")
    base = model.generate(["snow"], 3).int()
    for other in (
        model.generate(["snow"], 3, first=1),
        model.generate(["snow"], 4),
        model.generate(["a red circle"], 3),
    ):
        assert (other.int() - base).abs().max() > 2  # more than rounding


def test_a_dropped_embedding_is_not_seen() -> None:
    model = cascade("ddim")
    text, random = model.captions(["snow", "snow"]), model.random(0, 0, 2)
    one, other = torch.randn(2, 2, 16, generator=torch.Generator().manual_seed(0))
    seen = [model.decode(z, text, random) for z in (one, other)]
    unseen = [model.decode(z, text, random, keep_image=False) for z in (one, other)]
    assert not torch.allclose(*seen, atol=1e-2)
    assert torch.equal(*unseen)


def test_an_autoregressive_prior_draws_the_same_in_any_batch() -> None:
    config = ArPriorConfig(16, 32, 12, components=4, buckets=8, dot_buckets=4, layers=1, heads=1)
    settings = PriorPart(run="ar_prior", guidance=2.0)
    told = part(ArPrior(config), settings, config, PriorObjectiveConfig())
    prior: Any = ArPart(settings, told.network)
    model = dataclasses.replace(cascade("ddim"), prior=prior)
    whole = model.generate(CAPTIONS, seed=3)
    parts = torch.cat([model.generate(CAPTIONS[i : i + 2], 3, first=i) for i in (0, 2, 4)])
    assert (whole.int() - parts.int()).abs().max() <= 1


class Knowing(nn.Module):
    """A prior that knows the sample, and predicts as its diffusion asks."""

    def __init__(self, sample: torch.Tensor, diffusion: Diffusion) -> None:
        super().__init__()
        self.sample, self.diffusion = sample, diffusion

    def forward(self, x: torch.Tensor, t: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        x0 = self.sample.expand_as(x)
        return self.diffusion.target(x0, t, self.diffusion.epsilon_from(x0, x, t))


@pytest.mark.parametrize("predicts", ["x0", "v", "epsilon"])
def test_a_prior_is_not_clamped_in_its_scaled_space(predicts: Any) -> None:
    """Embeddings are scaled to unit variance a coordinate: some are far beyond 1."""
    model = cascade("ddim")
    z_i = torch.nn.functional.normalize(torch.tensor([8.0, -5.0, 3.0, *[0.5] * 13]), dim=0)
    diffusion = Diffusion(DiffusionConfig(predicts=predicts))
    knowing = Knowing(4.0 * z_i, diffusion)  # sqrt(16): the largest coordinate is 3.2
    prior = dataclasses.replace(model.prior, network=knowing, diffusion=diffusion)
    knows = dataclasses.replace(model, prior=prior)
    made = knows.sample_prior(knows.captions(CAPTIONS), knows.random(0, 0, len(CAPTIONS)))
    torch.testing.assert_close(made, z_i.expand(len(CAPTIONS), 16), atol=1e-3, rtol=0)
