"""The oracle is open_clip's own transform: bits, not impressions."""

import numpy as np
import open_clip
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_pipeline.crop import Crop

SIZES = st.one_of(st.integers(8, 40), st.tuples(st.integers(8, 40), st.integers(8, 40)))


@given(
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    SIZES,
    st.sampled_from(["shortest", "longest", "squash"]),
    st.sampled_from(["bicubic", "bilinear"]),
    st.sampled_from([0, 17, 255]),
    st.integers(0, 2**32 - 1),
)
def test_pixels_are_those_of_open_clip(
    sides: tuple[int, int],
    size: int | tuple[int, int],
    mode: str,
    interpolation: str,
    fill: int,
    seed: int,
) -> None:
    picture = np.random.default_rng(seed).integers(0, 256, (*sides, 3), dtype=np.uint8)
    config = {
        "size": size,
        "resize_mode": mode,
        "interpolation": interpolation,
        "fill_color": fill,
        "mean": (0.0, 0.0, 0.0),
        "std": (1 / 255, 1 / 255, 1 / 255),
    }
    transform = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**config), is_train=False
    )
    try:
        expected = transform(Image.fromarray(picture))
    except ValueError:  # open_clip scales a thin line to nothing; here a line stays
        assert mode == "longest"
        assert Crop.of(config)(picture).shape == (*np.broadcast_to(size, 2), 3)
        return
    found = torch.from_numpy(Crop.of(config)(picture).copy()).permute(2, 0, 1)
    assert torch.equal(found, expected.round().to(torch.uint8))
    padded = np.concatenate([picture, picture[:, :, :1]], axis=2)
    assert np.array_equal(Crop.of(config)(padded), Crop.of(config)(picture))
