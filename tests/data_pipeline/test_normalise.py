"""The oracle are torchvision's own transforms: bits, not impressions."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import Compose, Normalize, ToTensor

from data_pipeline.normalise import Normaliser

_PART = st.floats(0.125, 1.0, width=32)


@given(st.tuples(_PART, _PART, _PART), st.tuples(_PART, _PART, _PART), st.integers(0, 2**32 - 1))
def test_values_are_those_of_torchvision(
    mean: tuple[float, ...], std: tuple[float, ...], seed: int
) -> None:
    random = np.random.default_rng(seed)
    normalise = Normaliser(torch.tensor(mean), torch.tensor(std))
    transform = Compose([ToTensor(), Normalize(mean, std)])
    for count in (3, 1, 4):  # its memory is used again, for fewer and for more
        pixels = random.integers(0, 256, (count, 5, 7, 3), dtype=np.uint8)
        expected = torch.stack([transform(picture) for picture in pixels])
        assert torch.equal(normalise(pixels), expected)
