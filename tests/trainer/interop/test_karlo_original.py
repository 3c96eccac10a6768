"""Karlo's original checkpoints beside its networks, written down once more from its source.

The references take their weights by Karlo's names, and make them up when they are asked for one
the first time: so they say which tensors there are, too.
"""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.interop.karlo import decoder_weights, prior_weights, upsampler_weights
from trainer.models.decoder import Decoder, DecoderConfig
from trainer.models.prior import DiffusionPrior, PriorConfig
from trainer.models.unet import UNetConfig
from trainer.models.upsampler import Upsampler, UpsamplerConfig

HEAD = 16


class Weights(dict[str, Tensor]):
    """A state dict that grows."""

    scale_shift = True  # of the residual blocks

    def __call__(self, name: str, *shape: int) -> Tensor:
        if name not in self:
            self[name] = 0.1 * torch.randn(shape) + (".norm" in name)
        assert self[name].shape == shape
        return self[name]

    def linear(self, name: str, x: Tensor, cout: int) -> Tensor:
        return F.linear(x, self(f"{name}.weight", cout, x.shape[-1]), self(f"{name}.bias", cout))

    def conv(self, name: str, x: Tensor, cout: int, kernel: int) -> Tensor:
        weight = self(f"{name}.weight", cout, x.shape[1], *[kernel] * (x.dim() - 2))
        function = F.conv1d if x.dim() == 3 else F.conv2d
        return function(x, weight, self(f"{name}.bias", cout), padding=kernel // 2)

    def group_norm(self, name: str, x: Tensor) -> Tensor:
        width = x.shape[1]
        return F.group_norm(x, 32, self(f"{name}.weight", width), self(f"{name}.bias", width))

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        width = x.shape[-1]
        return F.layer_norm(x, (width,), self(f"{name}.weight", width), self(f"{name}.bias", width))

    def time(self, name: str, t: Tensor, width: int, out: int) -> Tensor:
        rates = torch.exp(-math.log(10000) * torch.arange(width // 2) / (width // 2))
        angles = t[:, None].float() * rates
        hidden = self.linear(f"{name}.0", torch.cat([angles.cos(), angles.sin()], dim=1), out)
        return self.linear(f"{name}.2", F.silu(hidden), out)


def residual(w: Weights, at: str, x: Tensor, time: Tensor, cout: int, way: str = "") -> Tensor:
    resize = {
        "": lambda x: x,
        "down": lambda x: F.avg_pool2d(x, 2),
        "up": lambda x: F.interpolate(x, scale_factor=2, mode="nearest"),
    }[way]
    hidden = F.silu(w.group_norm(f"{at}.in_layers.0", x))
    hidden = w.conv(f"{at}.in_layers.2", resize(hidden), cout, 3)
    shift = w.linear(f"{at}.emb_layers.1", F.silu(time), cout * (2 if w.scale_shift else 1))
    shift = shift[:, :, None, None]
    if w.scale_shift:
        scale, shift = shift.chunk(2, dim=1)
        hidden = w.group_norm(f"{at}.out_layers.0", hidden) * (1 + scale) + shift
    else:
        hidden = w.group_norm(f"{at}.out_layers.0", hidden + shift)
    hidden = w.conv(f"{at}.out_layers.3", F.silu(hidden), cout, 3)
    x = resize(x)
    return hidden + (x if x.shape[1] == cout else w.conv(f"{at}.skip_connection", x, cout, 1))


def attention(w: Weights, at: str, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
    b, c, *side = x.shape
    pixels = w.group_norm(f"{at}.norm", x).view(b, c, -1)
    qkv = w.conv(f"{at}.qkv", pixels, 3 * c, 1)
    q, k, v = qkv.reshape(b * c // HEAD, 3 * HEAD, -1).split(HEAD, dim=1)
    more = w.conv(f"{at}.encoder_kv", context, 2 * c, 1).reshape(b * c // HEAD, 2 * HEAD, -1)
    k, v = (torch.cat(pair, dim=-1) for pair in zip(more.split(HEAD, dim=1), (k, v), strict=True))
    bias = F.pad(mask, (0, qkv.shape[-1])).repeat_interleave(c // HEAD, dim=0)[:, None]
    shares = (torch.einsum("bct,bcs->bts", q, k) / HEAD**0.5 + bias).softmax(dim=-1)
    out = torch.einsum("bts,bcs->bct", shares, v).reshape(b, c, -1)
    return x + w.conv(f"{at}.proj_out", out, c, 1).view(b, c, *side)


def unet(
    w: Weights, at: str, x: Tensor, time: Tensor, out: int, context: Tensor | None, mask: Tensor
) -> Tensor:
    """Widths 32 and 64, two blocks a level, attention at the lower level if there is context."""

    def attended(name: str, x: Tensor) -> Tensor:
        return x if context is None else attention(w, name, x, context, mask)

    inputs, outputs = f"{at}.input_blocks", f"{at}.output_blocks"
    x = w.conv(f"{inputs}.0.0", x, 32, 3)
    skips = [x]
    for number, (width, way) in enumerate([(32, ""), (32, ""), (32, "down"), (64, ""), (64, "")]):
        x = residual(w, f"{inputs}.{number + 1}.0", x, time, width, way)
        if width == 64:
            x = attended(f"{inputs}.{number + 1}.1", x)
        skips.append(x)
    x = attended(f"{at}.middle_block.1", residual(w, f"{at}.middle_block.0", x, time, 64))
    x = residual(w, f"{at}.middle_block.{1 if context is None else 2}", x, time, 64)
    for number, width in enumerate([64, 64, 64, 32, 32, 32]):
        x = residual(w, f"{outputs}.{number}.0", torch.cat([x, skips.pop()], 1), time, width)
        if width == 64:
            x = attended(f"{outputs}.{number}.1", x)
        if number == 2:
            x = residual(w, f"{outputs}.2.{1 if context is None else 2}", x, time, width, "up")
    return w.conv(f"{at}.out.2", F.silu(w.group_norm(f"{at}.out.0", x)), out, 3)


def conditions() -> dict[str, Tensor]:
    torch.manual_seed(2)
    return {
        "x_t": torch.randn(2, 3, 8, 8),
        "t": torch.tensor([3, 999]),
        "image_embedding": torch.randn(2, 12),
        "keep_image": torch.tensor([False, True]),
        "text_states": torch.randn(2, 7, 12),
        "text_mask": torch.arange(7) < torch.tensor([[2], [7]]),
        "text_embedding": torch.randn(2, 12),
    }


def sizes(**more: object) -> dict[str, object]:
    return {"channels": 32, "multipliers": (1, 2), "blocks": 2, "norm_groups": 32, **more}


@torch.no_grad()
def test_decoder() -> None:
    torch.manual_seed(1)
    w, given = Weights(), conditions()
    z = torch.where(given["keep_image"][:, None], given["image_embedding"], w("model.cf_param", 12))
    time = w.time("model.time_embed", given["t"], 32, 128) + w.linear("model.clip_emb", z, 128)
    time = time + w.linear("model.text_feat_proj", given["text_embedding"], 128)
    text = w.linear("model.text_seq_proj.0", given["text_states"], 20)
    text = w.layer_norm("model.text_seq_proj.1", text).permute(0, 2, 1)
    tokens = w.linear("model.clip_tok_proj", z, 20 * 4).reshape(2, -1, 4)
    mask = torch.where(F.pad(given["text_mask"], (4, 0), value=True), 0.0, float("-inf"))
    context = torch.cat([tokens, text], dim=2)
    expected = unet(w, "model", given["x_t"], time, 6, context, mask)
    assert expected.std() > 0.1

    network = UNetConfig(
        **sizes(out_channels=6, attention_levels=(1,), head_width=HEAD, context_width=20)
    )
    config = DecoderConfig(network, 12, 12, text_in_time=True)
    ours = Decoder(config).eval()
    ours.load_state_dict(decoder_weights(config, w))
    assert (ours(**given) - expected).abs().max() <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("steps", ["first_steps", "last_step"])
def test_super_resolution(steps: str) -> None:
    torch.manual_seed(1)
    w, t = Weights(), torch.tensor([3, 999])
    w.scale_shift = False
    w("model_of_another.weight", 3)
    x_t, enlarged = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    both, at = torch.cat([x_t, enlarged], dim=1), f"model_{steps}"
    expected = unet(w, at, both, w.time(f"{at}.time_embed", t, 32, 128), 3, None, t)

    config = UpsamplerConfig(UNetConfig(**sizes(in_channels=6, scale_shift=False)))
    ours = Upsampler(config).eval()
    ours.load_state_dict(upsampler_weights(config, w, steps))
    assert (ours(x_t, t, enlarged) - expected).abs().max() <= 1e-5


@torch.no_grad()
def test_prior() -> None:
    torch.manual_seed(1)
    w, given = Weights(), conditions()
    x, width = torch.randn(2, 12), 2 * HEAD
    parts = [
        w.linear("model.text_enc_proj", given["text_states"], width),
        w.linear("model.text_emb_proj", given["text_embedding"], width)[:, None],
        w.time("model.time_embed", given["t"], width, width)[:, None],
        w.linear("model.clip_img_proj", x, width)[:, None],
        w("model.prd_emb", 1, 1, width).expand(2, -1, -1),
    ]
    hidden = torch.cat(parts, dim=1) + w("model.positional_embedding", 1, 11, width)
    seen = F.pad(given["text_mask"], (0, 4), value=True)[:, None].expand(-1, 11, -1).tril()
    for block in range(2):
        at = f"model.transformer.resblocks.{block}"
        qkv = w.linear(f"{at}.attn.c_qkv", w.layer_norm(f"{at}.ln_1", hidden), 3 * width)
        q, k, v = qkv.view(2, 11, 2, -1).split(HEAD, dim=-1)
        scores = torch.einsum("bthc,bshc->bhts", q, k) / HEAD**0.5
        shares = scores.masked_fill(~seen[:, None], float("-inf")).softmax(dim=-1)
        found = torch.einsum("bhts,bshc->bthc", shares, v).reshape(2, 11, width)
        hidden = hidden + w.linear(f"{at}.attn.c_proj", found, width)
        inner = w.linear(f"{at}.mlp.c_fc", w.layer_norm(f"{at}.ln_2", hidden), 4 * width)
        hidden = hidden + w.linear(f"{at}.mlp.c_proj", F.gelu(inner), width)
    last = w.layer_norm("model.final_ln", hidden)[:, -1]
    expected = w.linear("model.out_proj", last, 12)

    config = PriorConfig(12, 12, context_length=7, layers=2, heads=2, head_width=HEAD)
    ours = DiffusionPrior(config).eval()
    mean, std = torch.randn(12), torch.rand(12)
    ours.load_state_dict(prior_weights(config, w, mean, std))
    out = ours(x, given["t"], given["text_states"], given["text_mask"], given["text_embedding"])
    assert (out - expected).abs().max() <= 1e-5
    assert torch.equal(ours.clip_mean[0], mean)
    assert torch.equal(ours.clip_std[0], std)
    w("model.padding_embedding", 11, width)
    with pytest.raises(ValueError, match=r"prior: the weights have model\.padding_embedding"):
        prior_weights(config, w, mean, std)
