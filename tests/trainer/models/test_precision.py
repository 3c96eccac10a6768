"""Networks in 16 bits: norms are computed in 32, and nothing is NaN, at small width either."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from trainer.models.decoder import Decoder, DecoderConfig
from trainer.models.prior import DiffusionPrior, PriorConfig
from trainer.models.text_transformer import TextTransformerConfig
from trainer.models.unet import ResBlock, UNetConfig
from trainer.models.upsampler import Upsampler, UpsamplerConfig

HALVES = [torch.bfloat16, torch.float16]
UNET = UNetConfig(
    out_channels=6,
    channels=4,
    multipliers=(1, 2),
    blocks=1,
    attention_levels=(1,),
    head_width=4,
    context_width=4,
)
READER = TextTransformerConfig(context_length=5, width=8, layers=1, heads=2, vocab_size=9)


def prior() -> tuple[nn.Module, list[torch.Tensor]]:
    model = DiffusionPrior(PriorConfig(6, 6, context_length=5, layers=2, heads=2, head_width=4))
    mask = torch.arange(5) < torch.tensor([[5], [2]])
    return model, [torch.randn(2, 6), times(), torch.randn(2, 5, 6), mask, torch.randn(2, 6)]


def decoder() -> tuple[nn.Module, list[torch.Tensor]]:
    model = Decoder(DecoderConfig(UNET, 6, 6, text_in_time=True, text=READER))
    mask = torch.arange(5) < torch.tensor([[5], [2]])
    given = [torch.randn(2, 3, 4, 4), times(), torch.randn(2, 6), torch.tensor([True, False])]
    tokens = torch.tensor([[7, 1, 2, 3, 8], [7, 8, 0, 0, 0]])
    return model, [*given, torch.randn(2, 5, 6), mask, torch.randn(2, 6), tokens]


def upsampler() -> tuple[nn.Module, list[torch.Tensor]]:
    sizes = UNetConfig(in_channels=6, channels=4, multipliers=(1, 2), blocks=1)
    picture = torch.randn(2, 3, 4, 4)
    return Upsampler(UpsamplerConfig(sizes)), [picture, times(), picture.clone()]


def times() -> torch.Tensor:
    return torch.tensor([0, 999])


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("make", [prior, decoder, upsampler])
def test_outputs_and_gradients_are_finite_at_the_smallest_width(
    make: Callable[[], tuple[nn.Module, list[torch.Tensor]]], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    model, given = make()
    model.to(dtype)
    with torch.no_grad():  # as in training, when no branch is zero any more, and larger
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    given = [30 * part if part.dtype == torch.float32 else part for part in given]
    out = model(*given)
    assert out.dtype == dtype
    assert out.isfinite().all()
    out.float().square().mean().backward()
    gradients = {name: value.grad for name, value in model.named_parameters()}
    assert [name for name, grad in gradients.items() if grad is None] == []
    assert [name for name, grad in gradients.items() if not grad.isfinite().all()] == []


@pytest.mark.parametrize("dtype", HALVES)
def test_norms_are_computed_in_32_bits(dtype: torch.dtype) -> None:
    """Sums of 16 bits would lose the spread beside the mean, and squares of 300 overflow fp16."""
    torch.manual_seed(0)
    block = ResBlock(64, 64, UNetConfig(channels=64))
    layer = DiffusionPrior(PriorConfig(6, 6, layers=1, heads=2, head_width=32)).norm_out
    pictures = (300 + 4 * torch.randn(2, 64, 16, 16)).to(dtype)
    tokens = (300 + 4 * torch.randn(2, 9, 64)).to(dtype)
    for norm, x in ((block.norm_in, pictures), (layer, tokens)):
        expected = norm(x.float())
        found = norm.to(dtype)(x).float()
        one_ulp = torch.finfo(dtype).eps * expected.abs().clamp(min=1e-2)
        assert ((found - expected).abs() <= one_ulp).all()


def test_residual_branches_begin_as_nothing() -> None:
    """The U-Net's are zero; the transformers' small, the more so the deeper."""
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(UNET, 6, 6, text=READER))
    blocks = [part for part in model.unet.modules() if isinstance(part, ResBlock)]
    assert all(not block.conv_out.weight.any() for block in blocks)
    attending = [
        part.out for name, part in model.unet.named_modules() if name.endswith("attention")
    ]
    assert attending
    assert all(not layer.weight.any() for layer in attending)
    assert not model.unet.conv_out.weight.any()
    for layers in (2, 8):
        config = PriorConfig(6, 6, layers=layers, heads=8, head_width=8)
        contract = DiffusionPrior(config).blocks[0].contract
        expected = (contract.in_features * 2 * layers) ** -0.5
        assert contract.weight.std().item() == pytest.approx(expected, rel=0.05)
