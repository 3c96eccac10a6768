"""The prior beside diffusers' PriorTransformer: the same function of the same weights."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import PriorTransformer
from torch import Tensor

from trainer.interop.prior import (
    config_from_diffusers,
    config_to_diffusers,
    weights_from_diffusers,
    weights_to_diffusers,
)
from trainer.models.prior import DiffusionPrior, PriorConfig

TINY = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 3}
TINY |= {"embedding_dim": 12, "num_embeddings": 6}


def randomised(module: Any) -> Any:
    """Nothing is zero or one any more: what is not carried over shows."""
    torch.manual_seed(1)
    with torch.no_grad():
        for value in module.state_dict().values():  # clip_mean and clip_std among them
            value.add_(torch.randn_like(value) * 0.2)
    return module.eval()


def inputs(mask: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(2)
    count, length = mask.shape
    return {
        "x_t": torch.randn(count, 12),
        "t": torch.tensor([0, 3, 999])[:count],
        "text_states": torch.randn(count, length, 12),
        "text_mask": mask,
        "text_embedding": torch.randn(count, 12),
    }


def run(theirs: PriorTransformer, given: dict[str, Tensor]) -> Tensor:
    return theirs(
        given["x_t"],
        given["t"],
        proj_embedding=given["text_embedding"],
        encoder_hidden_states=given["text_states"],
        attention_mask=given["text_mask"],
    ).predicted_image_embedding


MASK = torch.arange(6) < torch.tensor([[2], [6], [4]])  # the empty caption, a full one, another


@torch.no_grad()
def test_theirs_is_ours() -> None:
    theirs = randomised(PriorTransformer(**TINY))
    config = config_from_diffusers(theirs.config)
    ours = DiffusionPrior(config).eval()
    ours.load_state_dict(weights_from_diffusers(config, theirs.state_dict()))
    given = inputs(MASK)
    assert (ours(**given) - run(theirs, given)).abs().max() <= 1e-5
    torch.testing.assert_close(ours.clip_mean, theirs.clip_mean)
    torch.testing.assert_close(ours.clip_std, theirs.clip_std)


@torch.no_grad()
def test_ours_is_theirs() -> None:
    config = PriorConfig(12, 12, context_length=6, layers=2, heads=3, head_width=4, dropout=0.1)
    ours = randomised(DiffusionPrior(config))
    theirs = PriorTransformer.from_config(config_to_diffusers(config)).eval()
    theirs.load_state_dict(weights_to_diffusers(config, ours.state_dict()))
    given = inputs(MASK)
    assert (ours(**given) - run(theirs, given)).abs().max() <= 1e-5
    assert config_from_diffusers(theirs.config) == config


@torch.no_grad()
def test_their_samples_are_scaled_back() -> None:
    config = PriorConfig(12, 12, context_length=6, layers=1, heads=1, head_width=4)
    theirs = PriorTransformer.from_config(config_to_diffusers(config))
    ours = DiffusionPrior(config).state_dict()
    theirs.load_state_dict(weights_to_diffusers(config, ours, embedding_scale=17.2))
    z_i = torch.randn(3, 12)
    torch.testing.assert_close(theirs.post_process_latents(17.2 * z_i), z_i)


def test_there_and_back_is_the_same_bits() -> None:
    theirs = randomised(PriorTransformer(**TINY)).state_dict()
    config = config_from_diffusers(TINY)
    again = weights_to_diffusers(config, weights_from_diffusers(config, theirs))
    assert set(again) == set(theirs)
    assert all(torch.equal(again[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"norm_in_type": "layer"}, "PriorTransformer.norm_in_type: got 'layer', expected None"),
        ({"added_emb_type": None}, "added_emb_type: got None, expected 'prd'"),
        ({"clip_embed_dim": 9}, "clip_embed_dim: got 9, expected 12"),
        ({"time_embed_dim": 9}, "time_embed_dim: got 9, expected 16"),
        ({"rotary": True}, "rotary: got True, an unknown setting"),
    ],
)
def test_what_ours_cannot_express_is_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_from_diffusers({**TINY, **setting})


def test_what_theirs_cannot_express_is_refused() -> None:
    config = replace(config_from_diffusers(TINY), text_width=10)
    with pytest.raises(ValueError, match="text_width: got 10, expected 12"):
        config_to_diffusers(config)


def test_weights_that_do_not_fit_are_told() -> None:
    config = config_from_diffusers(TINY)
    theirs = PriorTransformer(**TINY).state_dict()
    more = {**theirs, "transformer_blocks.7.norm1.weight": torch.zeros(16)}
    with pytest.raises(ValueError, match=r"prior: the weights have transformer_blocks\.7"):
        weights_from_diffusers(config, more)
    del theirs["proj_in.bias"]
    with pytest.raises(ValueError, match=r"prior: the weights lack proj_in\.bias"):
        weights_from_diffusers(config, theirs)
