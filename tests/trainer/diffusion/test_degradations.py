"""Corruptions of an upsampler's conditioning."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from trainer.diffusion.degradations import (
    DegradationConfig,
    degrade,
    enlarge,
    gaussian_blur,
    jpeg,
    shrink,
)
from trainer.rng import SampleRandom

STRONG = DegradationConfig(kind="bsr", noise=0.1, jpeg_quality=20, shrink=0.4)


def pictures(count: int, side: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return enlarge(
        torch.rand(count, 3, side // 4, side // 4, generator=generator) * 2 - 1, 4
    ).clamp(-1, 1)


@pytest.mark.parametrize("config", [DegradationConfig(), STRONG], ids=["blur", "bsr"])
def test_strengths_are_drawn_per_sample_and_not_per_batch(config):
    same = pictures(1).expand(8, -1, -1, -1).contiguous()
    out = degrade(same, config, SampleRandom(0, torch.arange(8)))
    assert len({row.numpy().tobytes() for row in out}) == 8


@pytest.mark.parametrize("config", [DegradationConfig(), STRONG], ids=["blur", "bsr"])
def test_a_sample_is_corrupted_the_same_in_any_batch(config):
    x = pictures(9)
    whole = degrade(x, config, SampleRandom(4, torch.arange(9)))
    for row in range(9):
        alone = degrade(x[row : row + 1], config, SampleRandom(4, torch.tensor([row])))
        torch.testing.assert_close(alone[0], whole[row], atol=1e-5, rtol=1e-5)


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


def test_blur_is_scipys():
    x = pictures(2)
    blurred = gaussian_blur(x, torch.tensor([0.6, 1.2]), reach=4)
    for row, sigma in enumerate((0.6, 1.2)):
        for channel in range(3):
            expected = ndimage.gaussian_filter(
                x[row, channel].numpy(), sigma, mode="nearest", radius=4
            )
            np.testing.assert_allclose(blurred[row, channel], expected, atol=1e-5)


def test_jpeg_loses_what_pillows_does():
    gray = pictures(1, 64)[:, :1].expand(-1, 3, -1, -1)
    for quality in (20, 50, 90):
        ours = jpeg(gray, torch.tensor([float(quality)]))[0, 0]
        pixels = ((gray[0, 0] + 1) * 127.5).round().to(torch.uint8).numpy()
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
        theirs = np.asarray(Image.open(buffer)) / 127.5 - 1
        # Pillow rounds pixels to bytes twice, so that the losses are alike but not the same.
        losses = [(out - gray[0, 0].numpy()).ravel() for out in (ours.numpy(), theirs)]
        assert np.corrcoef(*losses)[0, 1] > (0.9 if quality <= 50 else 0.7), quality
        sizes = [np.abs(loss).mean() for loss in losses]
        assert 0.8 < sizes[0] / sizes[1] < 1.25, quality


def test_jpeg_takes_sides_that_are_no_multiple_of_eight():
    x = pictures(1, 20)
    out = jpeg(x, torch.tensor([100.0]))
    assert out.shape == x.shape
    assert (out - x).abs().max() < 0.03


def test_shrink_undoes_a_flat_enlargement():
    flat = torch.full((1, 3, 4, 4), 0.3)
    torch.testing.assert_close(shrink(enlarge(flat, 4), 4), flat)
