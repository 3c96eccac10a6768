"""A user's pictures: as people see them, or refused in one line."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from base.errors import UserError
from trainer.loader.pictures import decode_square
from trainer.sampling.inputs import fitted, read_mask, read_picture, squared, squared_mask


def saved(path: Path, pixels: object, **more: object) -> Path:
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(path, **more)
    return path


def test_transparent_parts_are_white_and_grey_is_a_colour(tmp_path: Path) -> None:
    clear = np.zeros((2, 3, 4), np.uint8)
    clear[0, 0] = (10, 20, 30, 255)
    found = read_picture(saved(tmp_path / "a.png", clear))
    assert found.shape == (3, 2, 3)
    assert found[:, 0, 0].tolist() == [10, 20, 30]
    assert (found[:, 1] == 255).all()
    grey = read_picture(saved(tmp_path / "b.png", np.full((2, 2), 7)))
    assert (grey == 7).all()
    assert grey.shape == (3, 2, 2)


def test_a_picture_stands_as_its_camera_says(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned clockwise
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, 4:] = 255
    found = read_picture(saved(tmp_path / "a.png", pixels, exif=turned))
    assert found.shape == (3, 8, 4)
    assert (found[:, :4] == 0).all()
    assert (found[:, 4:] == 255).all()


def test_a_square_is_the_loaders(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    path = saved(tmp_path / "a.jpg", pixels, quality=95)
    loaded = decode_square(path.read_bytes(), 40, lambda: "a")
    here = squared(read_picture(path), 40)
    assert (here.permute(1, 2, 0).int() - torch.from_numpy(loaded).int()).abs().max() <= 2
    assert fitted(here[None], 20).shape == (1, 3, 20, 20)


def test_masks_are_white_where_to_paint(tmp_path: Path) -> None:
    picture = torch.zeros(3, 4, 6, dtype=torch.uint8)
    pixels = np.zeros((4, 6))
    pixels[1:3, 2:5] = 255
    mask = read_mask(saved(tmp_path / "m.png", pixels), picture)
    assert mask.sum() == 6
    assert mask[1:3, 2:5].all()
    for name, wrong, told in (
        ("small.png", np.full((4, 5), 255), "got 5×4 pixels, expected 6×4 as in the picture"),
        ("black.png", np.zeros((4, 6)), "nothing in it is white, so there is nothing to paint"),
    ):
        with pytest.raises(UserError, match=f"{re.escape(name)}: {told}"):
            read_mask(saved(tmp_path / name, wrong), picture)


@pytest.mark.parametrize("side", [4, 16, 64])
def test_a_pixel_of_a_mask_is_lost_in_no_smaller_one(side: int) -> None:
    mask = torch.zeros(40, 4000, dtype=torch.bool)
    mask[3, 1984] = True  # of 40 rows and the columns from 1980
    found = squared_mask(mask, side)
    assert found.shape == (side, side)
    assert found[3 * side // 40, 4 * side // 40]
    assert found.sum() <= max(1, 4 * side * side / 1600)


def test_what_is_no_picture_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    cut = saved(tmp_path / "cut.png", np.zeros((64, 64, 3)))
    cut.write_bytes(cut.read_bytes()[:60])
    for name, told in (
        ("none.png", "no such file"),
        ("text.png", "not a readable picture"),
        ("cut.png", "not a readable picture"),
        (".", "not a readable picture"),
    ):
        with pytest.raises(UserError, match=told) as caught:
            read_picture(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_picture_that_would_fill_memory_is_refused(tmp_path: Path) -> None:
    huge = tmp_path / "huge.png"
    for side, told in (
        (10_001, "got 10001×10001 pixels, expected at most 100,000,000"),
        (14_000, "not a readable picture .*exceeds limit"),
    ):
        Image.new("1", (side, side)).save(huge)
        with pytest.raises(UserError, match=told):
            read_picture(huge)
