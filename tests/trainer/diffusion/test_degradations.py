"""Corruptions of an upsampler's conditioning, beside scipy, OpenCV, Pillow and torch."""

import io
import math
from collections.abc import Callable
from itertools import permutations

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from stages import CONFIGS
from torch.nn import functional as F

from base.errors import UserError
from trainer.diffusion.degradations import DegradationConfig, degrade, enlarge, shrink
from trainer.diffusion.degradations.blur import convolve, gaussian_kernels
from trainer.diffusion.degradations.chain import JPEG, NOISE, RESIZE, Chain, draw_chain
from trainer.diffusion.degradations.jpeg import jpeg
from trainer.diffusion.degradations.noise import (
    COLOUR,
    CORRELATED,
    GREY,
    channel_mixing,
    mix_channels,
)
from trainer.diffusion.degradations.resampling import AREA, BICUBIC, BILINEAR, resampling
from trainer.rng import SampleRandom
from trainer.stages import load_train_config

STRONG = DegradationConfig(
    kind="bsr", blur_sigma=(0.0, 1.5), noise=0.1, jpeg_quality=20, shrink=0.4
)


def pictures(count: int, height: int = 16, width: int | None = None) -> torch.Tensor:
    """Soft blots in all colours, in whole levels of a byte. [count, 3, height, width]"""
    width = width or height
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, -(-height // 4), -(-width // 4), generator=generator) * 2 - 1
    x = enlarge(coarse, 4)[:, :, :height, :width].clamp(-1, 1)
    return as_bytes(x) / 127.5 - 1


def as_bytes(x: torch.Tensor) -> torch.Tensor:
    return ((x + 1) * 127.5).round().clamp(0, 255)


@pytest.mark.parametrize("config", [DegradationConfig(), STRONG], ids=["blur", "bsr"])
def test_strengths_are_drawn_per_sample_and_not_per_batch(config):
    same = pictures(1).expand(8, -1, -1, -1).contiguous()
    out = degrade(same, config, SampleRandom(0, torch.arange(8)))
    assert len({row.numpy().tobytes() for row in out}) == 8


@pytest.mark.parametrize("config", [DegradationConfig(), STRONG], ids=["blur", "bsr"])
@pytest.mark.parametrize("size", [(16, 16), (20, 30)])
def test_a_sample_is_corrupted_the_same_in_any_batch(config, size):
    x = pictures(24, *size)
    whole = degrade(x, config, SampleRandom(4, torch.arange(24)))
    assert whole.dtype == torch.float32
    for count in (1, 5):
        parts = [
            degrade(x[at : at + count], config, SampleRandom(4, torch.arange(24)[at : at + count]))
            for at in range(0, 24, count)
        ]
        torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=1e-5)


def test_none_is_the_identity_and_the_input_stays():
    x = pictures(2)
    before = x.clone()
    random = SampleRandom(0, torch.arange(2))
    assert degrade(x, DegradationConfig(kind="none"), random) is x
    for config in (DegradationConfig(), STRONG):
        out = degrade(x, config, random)
        assert out.shape == x.shape
        assert out.abs().max() <= 1
        assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("blur_sigma=[0.6, 0.2]", r"blur_sigma: got \[0.6, 0.2\], expected 0 <= first <= second"),
        ("noise=-0.1", "noise: got -0.1, expected 0 to 2"),
        ("jpeg_quality=0", "jpeg_quality: got 0, expected 1 to 100"),
        ("shrink=0.0", "shrink: got 0.0, expected more than 0, at most 1"),
    ],
)
def test_a_wrong_strength_is_told_in_one_line(wrong, message):
    with pytest.raises(UserError, match=message) as caught:
        load_train_config(CONFIGS / "up256.yaml", [f"objective.degradation.{wrong}"])
    assert "\n" not in str(caught.value)


def scipys_blur(x: np.ndarray, sigma: float, ratio: float, angle: float, reach: int) -> np.ndarray:
    """A picture [C, H, W] by the Gaussian whose covariance has these axes."""
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    precision = turn @ np.diag([sigma**-2.0, (sigma * ratio) ** -2.0]) @ turn.T
    dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    at = np.stack([dx, dy], axis=-1)
    kernel = np.exp(-0.5 * np.einsum("yxi,ij,yxj->yx", at, precision, at))
    return ndimage.convolve(x, kernel[None] / kernel.sum(), mode="nearest")


def test_isotropic_blur_is_scipys():
    x = pictures(2)
    blurred = convolve(x, gaussian_kernels(torch.tensor([0.6, 1.2]), reach=4))
    for row, sigma in enumerate((0.6, 1.2)):
        for channel in range(3):
            expected = ndimage.gaussian_filter(
                x[row, channel].numpy(), sigma, mode="nearest", radius=4
            )
            np.testing.assert_allclose(blurred[row, channel], expected, atol=1e-5)


def test_anisotropic_blur_is_scipys():
    x = pictures(3, 24, 17)
    sigma, ratio = torch.tensor([0.6, 1.2, 3.0]), torch.tensor([0.9, 0.5, 0.2])
    angle = torch.tensor([0.3, 1.2, 2.8])
    blurred = convolve(x, gaussian_kernels(sigma, 9, angle, ratio))
    for row in range(3):
        axes = float(sigma[row]), float(ratio[row]), float(angle[row])
        expected = scipys_blur(x[row].double().numpy(), *axes, reach=9)
        np.testing.assert_allclose(blurred[row], expected, atol=1e-5)


def opencvs_area(x: torch.Tensor, side: int) -> np.ndarray:
    planes = x.permute(1, 2, 0).numpy()
    return cv2.resize(planes, (side, side), interpolation=cv2.INTER_AREA).transpose(2, 0, 1)


def pillows(x: torch.Tensor, side: int, how: Image.Resampling) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(p.numpy()).resize((side, side), how)) for p in x])


def torchs(x: torch.Tensor, side: int, how: str) -> torch.Tensor:
    return F.interpolate(x[None], size=(side, side), mode=how, antialias=True)[0]


RESIZERS: list[tuple[int, Callable[[torch.Tensor, int], object]]] = [
    (AREA, opencvs_area),
    (BILINEAR, lambda x, side: pillows(x, side, Image.Resampling.BILINEAR)),
    (BILINEAR, lambda x, side: torchs(x, side, "bilinear")),
    (BICUBIC, lambda x, side: pillows(x, side, Image.Resampling.BICUBIC)),
    (BICUBIC, lambda x, side: torchs(x, side, "bicubic")),
]
NAMES = ["area of OpenCV", "bilinear of Pillow", "of torch", "bicubic of Pillow", "of torch "]


@pytest.mark.parametrize(("kernel", "theirs"), RESIZERS, ids=NAMES)
@pytest.mark.parametrize("source", [16, 23, 30])
def test_a_resize_is_that_of_other_libraries(kernel, theirs, source):
    target = torch.tensor([7, 12, 16, 21, 30])
    x = pictures(5, source)
    kinds, sources = torch.full((5,), kernel), torch.full((5,), float(source))
    matrices = resampling(kinds, sources, target.float(), 30)
    torch.testing.assert_close(
        matrices.sum(2), (torch.arange(30) < target[:, None]).float(), atol=1e-5, rtol=0
    )
    for row, side in enumerate(target.tolist()):
        matrix = matrices[row, :side, :source]
        np.testing.assert_allclose(matrix @ x[row] @ matrix.T, theirs(x[row], side), atol=2e-5)


def test_noise_has_the_correlation_of_its_kind():
    random = SampleRandom(0, torch.arange(300))
    kinds = torch.tensor([GREY, COLOUR, CORRELATED]).repeat(100)
    mixing = channel_mixing(kinds, random.uniform("directions", 3, 3))
    noise = mix_channels(random.normal("noise", 3, 64, 64), mixing).flatten(2).double()  # [B, 3, N]
    assert noise.mean(2).abs().max() < 0.08  # 5 deviations of a mean over 64² pixels
    covariance = noise @ noise.mT / noise.shape[2]
    torch.testing.assert_close(covariance, (mixing @ mixing.mT).double(), atol=0.12, rtol=0)
    torch.testing.assert_close(
        covariance.diagonal(dim1=1, dim2=2), torch.ones(300, 3).double(), atol=0.12, rtol=0
    )
    apart = covariance[:, [0, 0, 1], [1, 2, 2]]
    assert apart[kinds == GREY].min() > 0.88
    assert apart[kinds == COLOUR].abs().max() < 0.12
    between = apart[kinds == CORRELATED]
    assert between.min() > -0.12
    assert between.std() > 0.15


def pillows_jpeg(x: torch.Tensor, quality: int, halved: bool) -> torch.Tensor:
    """A picture [3, H, W] through a JPEG file."""
    buffer = io.BytesIO()
    pixels = as_bytes(x).to(torch.uint8).permute(1, 2, 0).numpy()
    subsampling = "4:2:0" if halved else "4:4:4"
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    return torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1) / 127.5 - 1


@pytest.mark.parametrize("halved", [False, True], ids=["4:4:4", "4:2:0"])
@pytest.mark.parametrize("size", [(64, 64), (50, 39), (72, 24)], ids=str)
@pytest.mark.parametrize("grey", [False, True], ids=["colour", "grey"])
def test_jpeg_loses_what_pillows_does(halved, size, grey):
    x = pictures(6, *size)
    x = x[:, :1].expand(-1, 3, -1, -1) if grey else x
    for quality in (5, 20, 50, 75, 90):
        ours = jpeg(x, torch.full((6,), quality), torch.full((6,), halved))
        theirs = torch.stack([pillows_jpeg(picture, quality, halved) for picture in x])
        away = (ours - theirs).abs() * 127.5  # levels of a byte
        assert away.mean() < 0.4, quality
        assert (away < 0.5).float().mean() > 0.8, quality
        losses = torch.stack([ours - x, theirs - x]).flatten(1)
        assert torch.corrcoef(losses)[0, 1] > 0.98, quality
        assert 0.98 < losses[0].abs().mean() / losses[1].abs().mean() < 1.02, quality


def test_jpeg_keeps_flat_pictures_and_clips_what_is_too_bright():
    flat = torch.tensor([-1.5, -1.0, 128 / 127.5 - 1, 1.0, 1.5]).view(5, 1, 1, 1)
    out = jpeg(flat.expand(5, 3, 20, 20), torch.full((5,), 30), torch.arange(5) % 2 == 0)
    torch.testing.assert_close(out, flat.clamp(-1, 1).expand(5, 3, 20, 20))


def test_shares_of_orders_and_kinds():
    count = 24_000
    chain = draw_chain(STRONG, SampleRandom(7, torch.arange(count)))
    orders = [tuple(order) for order in chain.order.tolist()]
    shares = [orders.count(order) / count for order in permutations(range(4))]
    assert sum(shares) == pytest.approx(1)
    assert shares == pytest.approx([1 / 24] * 24, abs=0.006)
    for kernels in (chain.down, chain.up, (chain.down + chain.up) % 3):  # and of both together
        assert (kernels.bincount() / count).tolist() == pytest.approx([1 / 3] * 3, abs=0.015)
    assert (chain.ratio == 1).float().mean() == pytest.approx(0.5, abs=0.015)
    assert chain.halved.float().mean() == pytest.approx(0.5, abs=0.015)
    correlations = (chain.mixing @ chain.mixing.mT)[:, [0, 0, 1], [1, 2, 2]]  # [B, 3]
    grey, colour = ((correlations == value).all(dim=1) for value in (1, 0))
    assert grey.float().mean() == pytest.approx(0.4, abs=0.015)
    assert colour.float().mean() == pytest.approx(0.4, abs=0.015)
    assert sorted(set(chain.quality.tolist())) == list(range(20, 101))
    assert 0 <= chain.sigma.min() < 0.01 < 1.49 < chain.sigma.max() < 1.5
    assert 0.4 <= chain.scale.min() < 0.401 < 0.999 < chain.scale.max() <= 1
    assert 0 <= chain.deviation.min() < 0.001 < 0.099 < chain.deviation.max() < 0.1


def by_hand(x: torch.Tensor, chain: Chain, row: int, grain: torch.Tensor) -> torch.Tensor:
    """One picture [3, S, S] through other libraries' steps in the chain's order."""
    side = x.shape[2]
    resizers = {AREA: RESIZERS[0][1], BILINEAR: RESIZERS[1][1], BICUBIC: RESIZERS[3][1]}
    for step in chain.order[row].tolist():
        if step == NOISE:
            x = x + chain.deviation[row] * torch.einsum("ij,jhw->ihw", chain.mixing[row], grain)
        elif step == JPEG:
            x = pillows_jpeg(x, int(chain.quality[row]), bool(chain.halved[row]))
        elif step == RESIZE:
            small = resizers[int(chain.down[row])](x, round(side * float(chain.scale[row])))
            back = resizers[int(chain.up[row])](torch.as_tensor(small), side)
            x = torch.as_tensor(back)
        else:
            axes = [float(value[row]) for value in (chain.sigma, chain.ratio, chain.angle)]
            axes = [max(1e-3, axes[0]), max(1e-3, axes[1]), axes[2]]
            x = torch.from_numpy(scipys_blur(x.double().numpy(), *axes, reach=5)).float()
    return x.clamp(-1, 1)


def test_the_chain_is_its_steps_in_each_pictures_order():
    random, x = SampleRandom(2, torch.arange(48)), pictures(48, 32)
    chain = draw_chain(STRONG, random)
    out = degrade(x, STRONG, random)
    grain = random.normal("grain", 3, 32, 32)
    for row in range(48):
        expected = by_hand(x[row], chain, row, grain[row])
        away = (out[row] - expected).abs().mean() * 127.5
        assert away < 0.6, (row, chain.order[row], float(away))
    assert len({tuple(order) for order in chain.order.tolist()}) > 12


def test_shrink_undoes_a_flat_enlargement():
    flat = torch.full((1, 3, 4, 4), 0.3)
    torch.testing.assert_close(shrink(enlarge(flat, 4), 4), flat)
