"""A decoder's own reader of captions."""

import pytest
import torch
from torch import Tensor, nn

from trainer.models.decoder import Decoder, DecoderConfig
from trainer.models.text_transformer import TextTransformer, TextTransformerConfig
from trainer.models.unet import UNetConfig

SMALL = TextTransformerConfig(context_length=9, width=16, layers=2, heads=4, vocab_size=50)
END = 49
TOKENS = torch.tensor([[48, 3, 5, END, 0, 0], [48, 3, 5, 7, 7, END], [48, END, 0, 0, 0, 0]])


def randomised(module: nn.Module) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)


@pytest.fixture
def reader() -> TextTransformer:
    reader = TextTransformer(SMALL).eval()
    randomised(reader)
    return reader


def torchs_own(reader: TextTransformer) -> nn.TransformerEncoder:
    """The same blocks as torch has them, with the same weights."""
    layer = nn.TransformerEncoderLayer(16, 4, 64, 0.0, "gelu", batch_first=True, norm_first=True)
    theirs = nn.TransformerEncoder(layer, 2, nn.LayerNorm(16), enable_nested_tensor=False)
    names = {
        "qkv.weight": "self_attn.in_proj_weight",
        "qkv.bias": "self_attn.in_proj_bias",
        "out.": "self_attn.out_proj.",
        "expand.": "linear1.",
        "contract.": "linear2.",
        "norm_attention.": "norm1.",
        "norm_mlp.": "norm2.",
        "blocks.": "layers.",
        "norm_out.": "norm.",
    }
    weights = {}
    for name, value in reader.state_dict().items():
        for ours, other in names.items():
            name = (
                name.replace(ours, other)
                if ours != "out."
                else name.replace(f".{ours}", f".{other}")
            )
        weights[name] = value
    for table in ("token_embedding.weight", "positions", "padding"):
        del weights[table]
    theirs.load_state_dict(weights)
    return theirs.eval()


@torch.no_grad()
def test_equals_torchs_transformer(reader: TextTransformer) -> None:
    x = reader.token_embedding(TOKENS) + reader.positions[:6]
    for row, end in enumerate((3, 5, 1)):
        x[row, end + 1 :] = reader.padding[end + 1 : 6]
    expected = torchs_own(reader)(x)
    states, last = reader(TOKENS)
    torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(last, states[:, -1])


@torch.no_grad()
def test_every_token_and_its_place_reach_the_last_state(reader: TextTransformer) -> None:
    _, last = reader(TOKENS)
    for other in ([48, 4, 5, END, 0, 0], [48, 5, 3, END, 0, 0]):
        assert not torch.allclose(reader(torch.tensor([other]))[1], last[:1], atol=1e-4)
    after_the_end = TOKENS.clone()
    after_the_end[0, 4:] = 7
    torch.testing.assert_close(reader(after_the_end)[1], last)


def test_the_paper_s_has_twelve_widths_squared_a_layer() -> None:
    config = TextTransformerConfig()
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in TextTransformer(config).parameters())
    w, tables = config.width, (config.vocab_size + 2 * config.context_length) * config.width
    assert count == 24 * (12 * w * w + 13 * w) + 2 * w + tables


def test_wrong_sizes_are_refused(reader: TextTransformer) -> None:
    with pytest.raises(ValueError, match="context_length: got 10 tokens, expected at most 9"):
        reader(torch.zeros(1, 10, dtype=torch.int64))
    with pytest.raises(ValueError, match="heads: got 3, expected a divisor of the width 16"):
        TextTransformerConfig(width=16, heads=3)


def conditions() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "x_t": torch.randn(3, 3, 8, 8),
        "t": torch.tensor([3, 900, 40]),
        "image_embedding": torch.randn(3, 6),
        "keep_image": torch.tensor([True, False, True]),
        "text_states": torch.randn(3, 6, 10),
        "text_mask": torch.ones(3, 6, dtype=torch.bool),
        "tokens": TOKENS,
    }


def test_a_decoder_reads_tokens_in_place_of_clips_states() -> None:
    unet = UNetConfig(
        channels=16, multipliers=(1, 2), blocks=1, attention_levels=(1,), context_width=8
    )
    decoder = Decoder(DecoderConfig(unet, 6, 10, text=SMALL)).eval()
    randomised(decoder)
    given = conditions()
    expected = decoder(**given)
    states = {**given, "text_states": given["text_states"] + 1}
    assert torch.equal(decoder(**states), expected)
    changed = {**given, "tokens": given["tokens"].roll(1, dims=0)}
    assert not torch.allclose(decoder(**changed), expected, atol=1e-3)
    expected.square().sum().backward()
    without = [name for name, value in decoder.named_parameters() if value.grad is None]
    assert without == []
    with pytest.raises(ValueError, match="tokens: got None, expected the caption's"):
        decoder(**{**given, "tokens": None})
    assert len(decoder.compute_blocks()) == 2 + len(decoder.unet.compute_blocks())
