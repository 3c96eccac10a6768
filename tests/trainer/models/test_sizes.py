"""Structure and sizes of the models against the published ones."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from trainer.models.decoder import Conditioner, Decoder, DecoderConfig
from trainer.models.prior import DiffusionPrior, PriorConfig, without_padding
from trainer.models.transformer import causal_mask
from trainer.models.unet import UNet, UNetConfig
from trainer.models.upsampler import Upsampler, UpsamplerConfig


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_prior_has_karlos_parameter_count():
    with torch.device("meta"):
        prior = DiffusionPrior(PriorConfig(embedding_dim=768, text_width=768))
    # Karlo counts the mean and deviation of its embeddings as parameters.
    assert count(prior) + prior.clip_mean.numel() + prior.clip_std.numel() == 1_022_030_080


def test_decoder_has_karlos_parameter_count():
    config = UNetConfig(out_channels=6, attention_levels=(1, 2, 3), context_width=1536, dropout=0.1)
    with torch.device("meta"):
        decoder = Decoder(DecoderConfig(config, 768, 768, text_in_time=True))
    assert count(decoder.unet) == 885_439_686
    assert count(decoder.conditioner) == 7_878_400  # their text_proj


def test_upsampler_has_karlos_parameter_count():
    with torch.device("meta"):
        assert count(UNet(UNetConfig(in_channels=6, scale_shift=False))) == 691_579_523


@pytest.fixture
def prior() -> DiffusionPrior:
    torch.manual_seed(0)
    config = PriorConfig(8, 12, context_length=6, layers=2, heads=2, head_width=8)
    return DiffusionPrior(config).eval()


def test_prior_ignores_padding(prior):
    x, t = torch.randn(2, 8), torch.tensor([3, 900])
    states, z_t = torch.randn(2, 6, 12), torch.randn(2, 8)
    mask = torch.tensor([[True] * 3 + [False] * 3, [True] * 6])
    expected = prior(x, t, states, mask, z_t)
    states[0, 3:] = 1e3
    assert torch.equal(prior(x, t, states, mask, z_t), expected)
    states[0, 2] += 1
    assert not torch.allclose(prior(x, t, states, mask, z_t), expected)


def test_prior_sees_every_condition(prior):
    arguments = {
        "x_t": torch.randn(1, 8),
        "t": torch.tensor([500]),
        "text_states": torch.randn(1, 6, 12),
        "text_mask": torch.ones(1, 6, dtype=torch.bool),
        "text_embedding": torch.randn(1, 8),
    }
    expected = prior(**arguments)
    for name in ("x_t", "t", "text_states", "text_embedding"):
        changed = {**arguments, name: arguments[name] + 1}
        assert not torch.allclose(prior(**changed), expected), name


def tiny_decoder() -> Decoder:
    torch.manual_seed(0)
    unet = UNetConfig(
        channels=16,
        multipliers=(1, 2),
        blocks=1,
        attention_levels=(1,),
        head_width=8,
        context_width=8,
    )
    decoder = Decoder(DecoderConfig(unet, embedding_dim=6, text_width=10)).eval()
    for parameter in decoder.parameters():  # zeroed branches would hide the conditions
        torch.nn.init.normal_(parameter, std=0.2)
    return decoder


def test_decoder_sees_every_condition_and_ignores_padding():
    decoder = tiny_decoder()
    arguments = {
        "x_t": torch.randn(2, 3, 8, 8),
        "t": torch.tensor([3, 900]),
        "image_embedding": torch.randn(2, 6),
        "keep_image": torch.tensor([True, True]),
        "text_states": torch.randn(2, 5, 10),
        "text_mask": torch.tensor([[True] * 2 + [False] * 3, [True] * 5]),
    }
    expected = decoder(**arguments)
    assert expected.shape == (2, 3, 8, 8)
    for name in ("x_t", "t", "image_embedding", "text_states"):
        changed = {**arguments, name: arguments[name] + 1}
        assert not torch.allclose(decoder(**changed), expected), name
    padded = arguments["text_states"].clone()
    padded[0, 2:] = 50.0
    torch.testing.assert_close(decoder(**{**arguments, "text_states": padded}), expected)


def test_a_text_embedding_in_the_time_embedding_is_seen_and_asked_for():
    config = UNetConfig(channels=4, context_width=8)
    conditioner = Conditioner(DecoderConfig(config, 6, 10, text_in_time=True))
    given = (torch.randn(1, 6), torch.tensor([True]), torch.randn(1, 5, 10), torch.ones(1, 5) > 0)
    z_t = torch.randn(1, 6)
    first, second = conditioner(*given, z_t)[0], conditioner(*given, z_t + 1)[0]
    assert not torch.allclose(first, second)
    with pytest.raises(ValueError, match="text_embedding: got None, expected z_t"):
        conditioner(*given)


def test_a_dropped_image_embedding_leaves_no_trace():
    decoder = tiny_decoder()
    rest = (torch.tensor([False]), torch.randn(1, 5, 10), torch.ones(1, 5, dtype=torch.bool))
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([5])
    first = decoder(x, t, torch.randn(1, 6), *rest)
    assert torch.equal(first, decoder(x, t, torch.randn(1, 6), *rest))


def test_conditioner_appends_four_tokens():
    conditioner = Conditioner(DecoderConfig(UNetConfig(channels=4, context_width=8), 6, 10))
    time, context, mask = conditioner(
        torch.randn(2, 6),
        torch.tensor([True, False]),
        torch.randn(2, 5, 10),
        torch.zeros(2, 5, dtype=torch.bool),
    )
    assert time.shape == (2, 16)
    assert context.shape == (2, 9, 8)
    assert mask.sum(dim=1).tolist() == [4, 4]  # the image's tokens are never padding


@pytest.mark.parametrize("patch", [1, 2])
def test_upsampler_applies_at_any_resolution(patch):
    config = UNetConfig(
        in_channels=6, channels=8, multipliers=(1, 2), blocks=1, scale_shift=False, patch=patch
    )
    upsampler = Upsampler(UpsamplerConfig(config))
    for height, width in ((16, 16), (32, 8), (64, 48)):
        x = torch.randn(1, 3, height, width)
        assert upsampler(x, torch.tensor([1]), x).shape == x.shape


def test_upsampler_refuses_attention():
    with pytest.raises(ValueError, match="convolutions only"):
        Upsampler(UpsamplerConfig(UNetConfig(attention_levels=(1,))))


def test_a_fresh_unet_predicts_zero():
    unet = UNet(UNetConfig(channels=8, multipliers=(1, 2), blocks=1))
    assert torch.count_nonzero(unet(torch.randn(1, 3, 8, 8), torch.tensor([1]))) == 0


def test_the_weights_decide_the_memory_format():
    unet = UNet(UNetConfig(channels=8, multipliers=(1, 2), blocks=1))
    picture = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    seen = []
    unet.down[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    unet(picture, torch.tensor([1, 2]))
    unet.to(memory_format=torch.channels_last)(picture.contiguous(), torch.tensor([1, 2]))
    assert seen[0].is_contiguous()
    assert seen[1].is_contiguous(memory_format=torch.channels_last)


def test_groups_of_norms_are_chosen():
    sizes = {"channels": 32, "multipliers": (1, 2), "blocks": 1}
    for groups, expected in ((None, {8, 16, 24, 32}), (32, {32})):
        unet = UNet(UNetConfig(**sizes, norm_groups=groups))
        norms = [m for m in unet.modules() if isinstance(m, torch.nn.GroupNorm)]
        assert {norm.num_groups for norm in norms} == expected
    with pytest.raises(ValueError, match="norm_groups: got 12, expected a divisor of a level's 32"):
        UNet(UNetConfig(**sizes, norm_groups=12))


@pytest.mark.parametrize("channels", [1, 2, 3, 6, 14, 22, 31])
def test_small_networks_of_any_width_have_norms(channels):
    unet = UNet(UNetConfig(channels=channels, multipliers=(1, 2), blocks=1))
    assert unet(torch.randn(1, 3, 4, 4), torch.tensor([1])).isfinite().all()


def test_heads_that_do_not_divide_a_level_are_refused() -> None:
    config = UNetConfig(channels=48, multipliers=(1, 2), attention_levels=(1,), head_width=40)
    with pytest.raises(
        ValueError, match="head_width: got 40, expected a divisor of the 96 channels"
    ):
        UNet(config)


@torch.no_grad()
def test_captions_that_a_prior_remembers_are_those_it_is_told_again(prior):
    states, z_t = torch.randn(3, 6, 12), torch.randn(3, 8)
    mask = torch.arange(6) < torch.tensor([[2], [4], [1]])
    captions = prior.remember(states, mask, z_t)
    for t, count in ((900, 3), (500, 1), (0, 3)):  # the first samples alone, and all again
        x, times = torch.randn(count, 8), torch.full((count,), t)
        expected = prior(x, times, states[:count], mask[:count], z_t[:count])
        torch.testing.assert_close(prior.answer(x, times, captions), expected)


def test_a_prior_leaves_padding_out_and_gives_the_gradient_of_all(prior):
    """Eight places of sixteen; and its last block works out one token alone."""
    longer = DiffusionPrior(replace(prior.config, context_length=16))
    x, t, states = torch.randn(2, 8), torch.tensor([3, 900]), torch.randn(2, 16, 12)
    z_t = torch.randn(2, 8)
    mask = torch.arange(16) < torch.tensor([[2], [5]])
    assert [part.shape[1] for part in without_padding(states, mask)] == [8, 8]
    longer(x, t, states, mask, z_t).square().sum().backward()
    found = {name: value.grad for name, value in longer.named_parameters()}
    longer.zero_grad()
    whole(longer, x, t, states, mask, z_t).square().sum().backward()
    for name, value in longer.named_parameters():
        torch.testing.assert_close(found[name], value.grad, atol=1e-6, rtol=1e-4)


def whole(prior, x_t, t, states, mask, z_t):
    """The prior of all tokens through all blocks."""
    tokens = [prior.text_states_in(states), prior.text_embedding_in(z_t)[:, None]]
    tokens += [prior.time(t)[:, None], prior.image_in(x_t)[:, None]]
    x = torch.cat([*tokens, prior.final_token.expand(len(x_t), -1, -1)], dim=1) + prior.positions
    for block in prior.blocks:
        x = block(x, causal_mask(F.pad(mask, (0, 4), value=True)))
    return prior.image_out(prior.norm_out(x[:, -1]))
