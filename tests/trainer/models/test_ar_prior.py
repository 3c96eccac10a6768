"""The autoregressive prior's network: what it sees, and that remembering changes nothing."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.engine.blocks import checkpoint_blocks
from trainer.models.ar_prior import ArPrior, ArPriorConfig
from trainer.models.transformer import causal_mask

CONFIG = ArPriorConfig(
    embedding_dim=8, text_width=12, context_length=6, components=5, buckets=16, dot_buckets=4,
    layers=2, heads=2, head_width=8,
)  # fmt: skip
PREFIX = 6 + 2


@pytest.fixture
def prior() -> ArPrior:
    """Random in every weight: the logits begin as zero."""
    torch.manual_seed(0)
    made = ArPrior(CONFIG).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def inputs() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(1)
    return {
        "text_states": torch.randn(3, 6, 12, generator=random),
        "text_mask": torch.arange(6) < torch.tensor([[3], [6], [1]]),
        "text_embedding": F.normalize(torch.randn(3, 8, generator=random), dim=1),
        "dot": torch.tensor([0, 3, 2]),
        "tokens": torch.randint(0, 16, (3, 5), generator=random),
    }


def test_a_token_is_told_by_those_before_it_alone(prior: ArPrior) -> None:
    given = inputs()
    expected = prior(**given)
    assert expected.shape == (3, 5, 16)
    for place in range(5):
        tokens = given["tokens"].clone()
        tokens[:, place] = (tokens[:, place] + 1) % 16
        changed = prior(**{**given, "tokens": tokens})
        assert torch.equal(changed[:, : place + 1], expected[:, : place + 1])
        for later in range(place + 1, 5):
            assert not torch.allclose(changed[:, later], expected[:, later])


def test_every_condition_is_seen_and_padding_is_not(prior: ArPrior) -> None:
    given = inputs()
    expected = prior(**given)
    padded = given["text_states"].masked_fill(~given["text_mask"][..., None], 1e3)
    assert torch.equal(prior(**{**given, "text_states": padded}), expected)
    others = {
        "text_states": given["text_states"] + 1,
        "text_embedding": given["text_embedding"].flip(0),
        "dot": (given["dot"] + 1) % 4,
    }
    for name, value in others.items():
        changed = prior(**{**given, name: value})
        for row in range(3):
            if not (name == "text_embedding" and row == 1):  # the middle one stays
                assert not torch.allclose(changed[row], expected[row]), (name, row)


def test_what_is_remembered_is_what_would_be_computed_again(prior: ArPrior) -> None:
    given = inputs()
    tokens = given.pop("tokens")
    with torch.inference_mode():
        expected = prior(**given, tokens=tokens)
        logits, state = prior.begin(**given)
        found = [logits]
        for place in range(4):
            found.append(prior.extend(tokens[:, place], state))
    torch.testing.assert_close(torch.stack(found, dim=1), expected, atol=1e-5, rtol=1e-5)
    assert {block.length for block in state.blocks} == {PREFIX + 4}


def test_a_fresh_prior_takes_every_token_for_as_likely_as_another() -> None:
    given = inputs()
    logits = ArPrior(CONFIG)(**given)
    loss = F.cross_entropy(logits.flatten(0, 1), given["tokens"].flatten())
    assert loss.item() == pytest.approx(math.log(16))


def test_it_is_torch_s_own_transformer_behind_a_prefix(prior: ArPrior) -> None:
    """With these weights, on the same sequence; causal and padding mask are told apart."""
    layer = nn.TransformerEncoderLayer(
        16, 2, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    theirs = nn.TransformerEncoder(layer, 2, nn.LayerNorm(16), enable_nested_tensor=False).eval()
    names = {"norm_attention": "norm1.", "qkv": "self_attn.in_proj_", "out": "self_attn.out_proj."}
    names |= {"norm_mlp": "norm2.", "expand": "linear1.", "contract": "linear2."}
    ours = prior.state_dict()
    state = {
        f"layers.{layer}.{named}{kind}": ours[f"blocks.{layer}.{name}.{kind}"]
        for layer in range(2)
        for name, named in names.items()
        for kind in ("weight", "bias")
    }
    theirs.load_state_dict(state | {f"norm.{k}": ours[f"norm_out.{k}"] for k in ("weight", "bias")})
    given = inputs()
    prefix = prior._prefix(given["text_states"], given["text_embedding"], given["dot"])
    sequence = torch.cat([prefix, prior.tokens_in(given["tokens"][:, :-1])], dim=1)
    hidden = theirs(
        sequence + prior.positions,
        mask=torch.ones(PREFIX + 4, PREFIX + 4, dtype=torch.bool).triu(1),
        src_key_padding_mask=F.pad(~given["text_mask"], (0, 6)),
    )
    expected = prior.logits_out(hidden[:, PREFIX - 1 :])
    torch.testing.assert_close(prior(**given), expected, atol=1e-4, rtol=1e-4)


def test_a_padded_token_sees_itself() -> None:
    keep = torch.tensor([[True, False, True]])
    expected = [[True, False, False], [True, True, False], [True, False, True]]
    assert causal_mask(keep)[0, 0].tolist() == expected
    nothing = causal_mask(torch.zeros(1, 2, dtype=torch.bool))
    assert nothing[0, 0].tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_finite_and_near(prior: ArPrior, dtype: torch.dtype) -> None:
    expected = prior(**inputs())
    logits = prior.to(dtype)(**inputs())
    assert logits.dtype == dtype
    scale = expected.abs().max().item()
    torch.testing.assert_close(logits.float(), expected, atol=0.1 * scale, rtol=0)


def test_recomputed_activations_give_the_same_gradients(prior: ArPrior) -> None:
    def gradients() -> dict[str, Any]:
        prior.zero_grad()
        prior(**inputs()).square().mean().backward()
        return {name: p.grad.clone() for name, p in prior.named_parameters() if p.grad is not None}

    plain = gradients()
    assert len(plain) == len(list(prior.parameters()))
    checkpoint_blocks(prior.compute_blocks())
    for name, gradient in gradients().items():
        assert torch.equal(gradient, plain[name]), name


def test_the_paper_s_size() -> None:
    """Appendix C's latent decoder: 24 blocks of 12 · 1664² and what is around them."""
    with torch.device("meta"):
        prior = ArPrior(ArPriorConfig(embedding_dim=1024, text_width=1024))
    assert prior.positions.shape == (1, 77 + 2 + 318, 1664)
    blocks = 24 * (12 * 1664**2 + 13 * 1664)
    tables = (1024 + 256 + 397) * 1664
    linears = 2 * (1024 + 1) * 1664 + (1664 + 1) * 1024 + 2 * 1664
    count = sum(parameter.numel() for parameter in prior.parameters())
    assert count == blocks + tables + linears == 805_871_232
