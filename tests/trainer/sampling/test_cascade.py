"""The cascade on networks with random weights: what belongs to a caption's position stays there."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_cascade import CAPTIONS, CLEAN, UNET, Sampler, cascade, part
from torch import nn

from base.errors import UserError
from trainer.diffusion.process import Diffusion, DiffusionConfig
from trainer.models.ar_prior import ArPrior, ArPriorConfig
from trainer.models.decoder import Decoder, DecoderConfig
from trainer.objectives.decoder import DecoderObjectiveConfig
from trainer.objectives.prior import PriorObjectiveConfig
from trainer.sampling import uses
from trainer.sampling.ar_prior import ArPart
from trainer.sampling.cascade import load_cascade
from trainer.sampling.config import PriorPart


@pytest.mark.parametrize("sampler", ["ddim", "ancestral", "dpm++", "heun", "analytic"])
def test_a_picture_is_the_same_in_any_batch(sampler: Sampler) -> None:
    """Up to the rounding of products of another shape: a level of 255, rarely."""
    model = cascade(sampler)
    whole = uses.text(model, CAPTIONS, model.random(3, range(5)))
    assert whole.shape == (5, 3, 32, 32)
    some = (range(2), range(2, 4), range(4, 5))
    parts = torch.cat(
        [uses.text(model, [CAPTIONS[i] for i in at], model.random(3, at)) for at in some]
    )
    difference = (whole.int() - parts.int()).abs()
    assert difference.max() <= 1
    assert difference.float().mean() < 0.01


def test_position_seed_and_caption_each_make_another_picture() -> None:
    model = cascade("ddim")
    base = uses.text(model, ["snow"], model.random(3, [0])).int()
    for other in (
        uses.text(model, ["snow"], model.random(3, [1])),
        uses.text(model, ["snow"], model.random(4, [0])),
        uses.text(model, ["a red circle"], model.random(3, [0])),
    ):
        assert (other.int() - base).abs().max() > 2  # more than rounding


def test_a_dropped_embedding_is_not_seen() -> None:
    model = cascade("ddim")
    text, random = model.captions(["snow", "snow"]), model.random(0, range(2))
    one, other = torch.randn(2, 2, 16, generator=torch.Generator().manual_seed(0))
    seen = [model.decode(z, text, random) for z in (one, other)]
    unseen = [model.decode(z, text, random, keep_image=False) for z in (one, other)]
    assert not torch.allclose(*seen, atol=1e-2)
    assert torch.equal(*unseen)


def test_guidance_in_no_interval_is_none() -> None:
    """And a network is then asked about its first conditions alone."""
    model = cascade("ddim")
    text, random = model.captions(CAPTIONS), model.random(0, range(len(CAPTIONS)))
    z_i = torch.randn(len(CAPTIONS), 16, generator=torch.Generator().manual_seed(0))

    def drawn(**settings: Any) -> torch.Tensor:
        part = model.decoder.settings.model_copy(update=settings)
        decoder = dataclasses.replace(model.decoder, settings=part)
        return dataclasses.replace(model, decoder=decoder).decode(z_i, text, random)

    plain, far = drawn(guidance=1.0), drawn(guidance_interval=(1e9, 2e9))
    torch.testing.assert_close(far, plain, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(drawn(), plain, atol=1e-2)
    assert not torch.allclose(drawn(guidance_rescale=1.0), drawn(), atol=1e-2)


def test_a_learned_variance_is_sampled() -> None:
    """The same noise at another size: the network's second half says how much."""
    drawn = []
    for spread in (-1.0, 1.0):
        model = cascade("ancestral")
        config = DecoderConfig(dataclasses.replace(UNET, out_channels=6), 16, 32)
        learned = DecoderObjectiveConfig(
            image_size=8, diffusion=dataclasses.replace(CLEAN, learned_variance=True)
        )
        decoder = part(Decoder(config), model.decoder.settings, config, learned, "decoder")
        last: Any = decoder.network.get_submodule("unet.conv_out")
        last.weight[3:] = 0.0
        last.bias[3:] = spread
        model = dataclasses.replace(model, decoder=decoder)
        text, random = model.captions(["snow"]), model.random(0, range(1))
        drawn.append(model.decode(torch.ones(1, 16), text, random))
    assert drawn[0].shape == (1, 3, 8, 8)
    assert not torch.allclose(*drawn, atol=1e-3)


def test_an_autoregressive_prior_draws_the_same_in_any_batch() -> None:
    config = ArPriorConfig(16, 32, 12, components=4, buckets=8, dot_buckets=4, layers=1, heads=1)
    settings = PriorPart(run="ar_prior", guidance=2.0)
    told = part(ArPrior(config), settings, config, PriorObjectiveConfig(), "prior")
    prior: Any = ArPart(settings, told.network)
    model = dataclasses.replace(cascade("ddim"), prior=prior)
    whole = uses.text(model, CAPTIONS, model.random(3, range(5)))
    alone = [uses.text(model, [text], model.random(3, [i])) for i, text in enumerate(CAPTIONS)]
    assert (whole.int() - torch.cat(alone).int()).abs().max() <= 1


class Knowing(nn.Module):
    """A prior that knows the sample, and predicts as its diffusion asks."""

    def restored(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def __init__(self, sample: torch.Tensor, diffusion: Diffusion) -> None:
        super().__init__()
        self.sample, self.diffusion = sample, diffusion

    def remember(self, *_: torch.Tensor) -> None:
        """It needs no captions."""

    def answer(self, x: torch.Tensor, t: torch.Tensor, _: None) -> torch.Tensor:
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
    made = knows.sample_prior(knows.captions(CAPTIONS), knows.random(0, range(len(CAPTIONS))))
    torch.testing.assert_close(made, z_i.expand(len(CAPTIONS), 16), atol=1e-3, rtol=0)


def test_a_decoder_that_wants_the_text_embedding_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoder = cascade().decoder
    objective = dataclasses.replace(decoder.config.objective, condition="text_embedding")
    told: Any = SimpleNamespace(**{**vars(decoder.config), "objective": objective})
    loaded = dataclasses.replace(decoder, config=told)
    monkeypatch.setattr("trainer.sampling.cascade.load_encoders", lambda name: (None, None))
    monkeypatch.setattr("trainer.sampling.cascade.load_part", lambda *given: loaded)
    with pytest.raises(
        UserError, match=r"^decoder\.run: decoder was trained with .*text_embedding"
    ):
        load_cascade(cascade().config)


@pytest.mark.parametrize("side", [8, 16])
def test_an_upsampler_takes_what_is_before_it(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = cascade()
    (larger,) = model.upsamplers
    objective = dataclasses.replace(larger.config.objective, image_size=4 * side)
    told: Any = SimpleNamespace(**{**vars(larger.config), "objective": objective})
    loaded = dataclasses.replace(larger, config=told)
    for name, made in (("part", model.decoder), ("prior", model.prior), ("upsampler", loaded)):
        monkeypatch.setattr(f"trainer.sampling.cascade.load_{name}", lambda *_, made=made: made)
    monkeypatch.setattr(
        "trainer.sampling.cascade.load_encoders", lambda *_: (model.text, model.image)
    )
    if side == 8:
        assert load_cascade(model.config).side == 32
        return
    with pytest.raises(UserError) as caught:
        load_cascade(model.config)
    assert str(caught.value) == (
        "upsamplers.0.run: up: enlarges 16×16 pixels, expected 8×8 as decoder gives them"
    )
