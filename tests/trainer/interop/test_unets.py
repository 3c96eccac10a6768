"""Decoder and upsampler beside diffusers' networks: the same function of the same weights."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.interop import decoder, upsampler
from trainer.models.decoder import Decoder, DecoderConfig
from trainer.models.unet import UNetConfig
from trainer.models.upsampler import Upsampler, UpsamplerConfig

DOWN, UP = "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"
DOWN_ATTENDS, UP_ATTENDS = "SimpleCrossAttnDownBlock2D", "SimpleCrossAttnUpBlock2D"
NETWORK: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 3,
    "out_channels": 6,
    "down_block_types": (DOWN, DOWN_ATTENDS, DOWN_ATTENDS),
    "up_block_types": (UP_ATTENDS, UP_ATTENDS, UP),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "block_out_channels": (16, 32, 48),
    "layers_per_block": 2,
    "norm_num_groups": 8,
    "cross_attention_dim": 20,
    "attention_head_dim": 8,
    "class_embed_type": "identity",
    "resnet_time_scale_shift": "scale_shift",
}
PROJECTIONS = {
    "clip_extra_context_tokens": 3,
    "clip_embeddings_dim": 12,
    "time_embed_dim": 64,
    "cross_attention_dim": 20,
}
SUPER: dict[str, Any] = {
    "sample_size": 32,
    "in_channels": 6,
    "out_channels": 3,
    "down_block_types": (DOWN,) * 3,
    "up_block_types": (UP,) * 3,
    "block_out_channels": (16, 32, 48),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "add_attention": False,
}
KARLO = UNetConfig(
    out_channels=6,
    channels=16,
    multipliers=(1, 2),
    blocks=1,
    attention_levels=(1,),
    head_width=8,
    context_width=20,
    norm_groups=8,
)


def randomised(module: Any) -> Any:
    """No branch is zero any more: what is not carried over shows."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return module.eval()


def conditions(count: int = 3, length: int = 7) -> dict[str, Tensor]:
    torch.manual_seed(2)
    return {
        "x_t": torch.randn(count, 3, 16, 16),
        "t": torch.tensor([0, 3, 999]),
        "image_embedding": torch.randn(count, 12),
        "keep_image": torch.tensor([False, True, True]),
        "text_states": torch.randn(count, length, 12),
        "text_mask": torch.arange(length) < torch.tensor([[2], [length], [4]]),
        "text_embedding": torch.randn(count, 12),
    }


def decode(
    network: UNet2DConditionModel, projections: UnCLIPTextProjModel, given: dict[str, Tensor]
) -> Tensor:
    """As diffusers' pipeline calls the two, the null for a dropped z_i among them."""
    null = projections.learned_classifier_free_guidance_embeddings
    z = torch.where(given["keep_image"][:, None], given["image_embedding"], null)
    states, time = projections(
        image_embeddings=z,
        prompt_embeds=given["text_embedding"],
        text_encoder_hidden_states=given["text_states"],
        do_classifier_free_guidance=False,
    )
    mask = F.pad(given["text_mask"], (projections.clip_extra_context_tokens, 0), value=True)
    out: Tensor = network(
        given["x_t"],
        given["t"],
        encoder_hidden_states=states,
        class_labels=time,
        attention_mask=mask,
    ).sample
    return out


def their_decoder() -> tuple[UNet2DConditionModel, UnCLIPTextProjModel]:
    return (
        randomised(UNet2DConditionModel(**NETWORK)),
        randomised(UnCLIPTextProjModel(**PROJECTIONS)),
    )


@torch.no_grad()
def test_their_decoder_is_ours() -> None:
    network, projections = their_decoder()
    config = decoder.config_from_diffusers(network.config, projections.config)
    ours = Decoder(config).eval()
    ours.load_state_dict(
        decoder.weights_from_diffusers(config, network.state_dict(), projections.state_dict())
    )
    given = conditions()
    expected = decode(network, projections, given)
    assert expected.std() > 0.1
    assert (ours(**given) - expected).abs().max() <= 1e-5
    # Their pipeline's doubled batch begins with the null of z_i.
    halves = projections(
        image_embeddings=given["image_embedding"][1:2],
        prompt_embeds=given["text_embedding"][:2],
        text_encoder_hidden_states=given["text_states"][:2],
        do_classifier_free_guidance=True,
    )
    kept, z = torch.tensor([False, True]), given["image_embedding"][1:2].expand(2, -1)
    time, context, mask = ours.conditioner(
        z, kept, given["text_states"][:2], given["text_mask"][:2], given["text_embedding"][:2]
    )
    torch.testing.assert_close(time, halves[1])
    torch.testing.assert_close(context.roll(3, dims=1), halves[0])
    assert mask[:, -3:].all()


@torch.no_grad()
@pytest.mark.parametrize("text_in_time", [True, False])
def test_our_decoder_is_theirs(text_in_time: bool) -> None:
    config = DecoderConfig(KARLO, 12, 12, text_in_time=text_in_time)
    ours = randomised(Decoder(config))
    network, projections = load_theirs(config, ours)
    given = conditions()
    assert (ours(**given) - decode(network, projections, given)).abs().max() <= 1e-5
    found = decoder.config_from_diffusers(network.config, projections.config)
    assert found == replace(config, text_in_time=True)


def load_theirs(
    config: DecoderConfig, ours: nn.Module, scale: float = 1.0
) -> tuple[UNet2DConditionModel, UnCLIPTextProjModel]:
    kinds = (UNet2DConditionModel, UnCLIPTextProjModel)
    configs = decoder.config_to_diffusers(config, 16)
    weights = decoder.weights_to_diffusers(config, ours.state_dict(), scale)
    network, projections = (
        kind.from_config(each).eval() for kind, each in zip(kinds, configs, strict=True)
    )
    network.load_state_dict(weights[0])
    projections.load_state_dict(weights[1])
    return network, projections


@torch.no_grad()
def test_the_scale_of_the_embeddings_is_folded_in() -> None:
    config = DecoderConfig(KARLO, 12, 12, text_in_time=True)
    ours = randomised(Decoder(config))
    network, projections = load_theirs(config, ours, 17.2)
    given = conditions()
    scaled = {**given, "image_embedding": 17.2 * given["image_embedding"]}
    expected = decode(network, projections, given)
    torch.testing.assert_close(ours(**scaled), expected, atol=1e-5, rtol=1e-4)


def test_decoder_there_and_back_is_the_same_bits() -> None:
    theirs = [module.state_dict() for module in their_decoder()]
    config = decoder.config_from_diffusers(NETWORK, PROJECTIONS)
    again = decoder.weights_to_diffusers(config, decoder.weights_from_diffusers(config, *theirs))
    for before, after in zip(theirs, again, strict=True):
        assert set(before) == set(after)
        assert all(torch.equal(before[name], after[name]) for name in before)


@torch.no_grad()
@pytest.mark.parametrize("shift", ["default", "scale_shift"])
def test_their_upsampler_is_ours(shift: str) -> None:
    theirs = randomised(UNet2DModel(**SUPER, resnet_time_scale_shift=shift))
    config = upsampler.config_from_diffusers(theirs.config)
    ours = Upsampler(config).eval()
    ours.load_state_dict(upsampler.weights_from_diffusers(config, theirs.state_dict()))
    torch.manual_seed(2)
    x_t, enlarged, t = torch.randn(2, 3, 16, 24), torch.randn(2, 3, 16, 24), torch.tensor([0, 999])
    expected = theirs(torch.cat([x_t, enlarged], dim=1), t).sample
    assert expected.std() > 0.1
    assert (ours(x_t, t, enlarged) - expected).abs().max() <= 1e-5


@torch.no_grad()
def test_our_upsampler_is_theirs() -> None:
    sizes = UNetConfig(6, 3, 16, (1, 1, 2), blocks=2, scale_shift=False, norm_groups=4)
    config = UpsamplerConfig(sizes)
    ours = randomised(Upsampler(config))
    theirs = UNet2DModel.from_config(upsampler.config_to_diffusers(config, 32)).eval()
    theirs.load_state_dict(upsampler.weights_to_diffusers(config, ours.state_dict()))
    torch.manual_seed(2)
    x_t, enlarged, t = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16), torch.tensor([0, 999])
    expected = theirs(torch.cat([x_t, enlarged], dim=1), t).sample
    assert (ours(x_t, t, enlarged) - expected).abs().max() <= 1e-5
    assert upsampler.config_from_diffusers(theirs.config) == config


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"norm_eps": 1e-6}, "UNet2DConditionModel.norm_eps: got 1e-06, expected 1e-05"),
        ({"flip_sin_to_cos": False}, "flip_sin_to_cos: got False, expected True"),
        ({"class_embed_type": None}, "class_embed_type: got None, expected 'identity'"),
        ({"block_out_channels": (16, 24, 48)}, "expected whole multiples of the first"),
        ({"layers_per_block": [1, 2, 2]}, "layers_per_block: got"),
        ({"down_block_types": (DOWN,) * 3}, "expected one a level and SimpleCrossAttnDownBlock2D"),
        ({"up_block_types": (UP, UP_ATTENDS, UP)}, "up_block_types: got"),
        ({"attention_head_dim": (8, 8, 16)}, "attention_head_dim: got .* expected one width"),
        ({"resnet_time_scale_shift": "spatial"}, "expected default or scale_shift"),
        ({"cross_attention_dim": 24}, "UnCLIPTextProjModel.cross_attention_dim: got 20, expec"),
    ],
)
def test_decoders_that_ours_cannot_express_are_refused(
    setting: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        decoder.config_from_diffusers({**NETWORK, **setting}, PROJECTIONS)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"add_attention": True}, "UNet2DModel.add_attention: got True, expected False"),
        ({"down_block_types": (DOWN, DOWN, "DownBlock2D")}, "down_block_types: got"),
    ],
)
def test_upsamplers_that_ours_cannot_express_are_refused(
    setting: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        upsampler.config_from_diffusers({**SUPER, **setting})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch": 2}, "unet.patch: got 2, expected 1"),
        ({"multipliers": (2, 4)}, "unet.multipliers.0: got 2, expected 1"),
        ({"norm_groups": None}, "unet.norm_groups: got None, which gives norms of"),
        ({"attention_levels": ()}, "expected a level that sees text"),
    ],
)
def test_decoders_that_theirs_cannot_express_are_refused(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        decoder.config_to_diffusers(DecoderConfig(replace(KARLO, **change), 12, 12), 16)
