"""A user's pictures and masks, read for a cascade."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from base.errors import UserError, one_line
from trainer.loader.pictures import square

_MOST_PIXELS = 100_000_000


def read_picture(path: Path) -> Tensor:
    """A picture as people see it: turned as its camera says, on white. uint8 [3, H, W].

    Raises:
        UserError: it is missing, no picture, or of more than 100 million pixels.
    """
    image = _open(path)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def read_mask(path: Path, picture: Tensor) -> Tensor:
    """Where to paint: white (or above half) in a picture of the size of `picture`. bool [H, W].

    Raises:
        UserError: it is missing, no picture, of another size, or has nothing to paint.
    """
    mask = torch.from_numpy(np.array(_open(path).convert("L"))) > 127
    if mask.shape != picture.shape[1:]:
        got, expected = (f"{size[1]}×{size[0]}" for size in (mask.shape, picture.shape[1:]))
        raise UserError(f"{path}: got {got} pixels, expected {expected} as in the picture")
    if not mask.any():
        raise UserError(f"{path}: nothing in it is white, so there is nothing to paint")
    return mask


def box_mask(box: tuple[int, int, int, int], picture: Tensor) -> Tensor:
    """True inside a box (left, top, right, bottom) of a picture. bool [H, W]

    Raises:
        UserError: nothing of it is in the picture.
    """
    left, top, right, bottom = box
    mask = torch.zeros(picture.shape[1:], dtype=torch.bool)
    mask[top:bottom, left:right] = True
    if not mask.any():
        height, width = picture.shape[1:]
        raise UserError(f"--box: got {list(box)}, which lies outside the {width}×{height} picture")
    return mask


def squared(picture: Tensor, side: int) -> Tensor:
    """The middle square as the loader makes it. uint8 [3, H, W] → [3, side, side]."""
    made = square(picture.permute(1, 2, 0).numpy(), side)
    return torch.from_numpy(np.ascontiguousarray(made)).permute(2, 0, 1)


def fitted(pictures: Tensor, side: int) -> Tensor:
    """Pictures, uint8 [B, 3, H, W] → their middle squares, [B, 3, side, side]."""
    return torch.stack([squared(picture, side) for picture in pictures])


def _open(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if image.width * image.height > _MOST_PIXELS:
                    raise UserError(
                        f"{path}: got {image.width}×{image.height} pixels, expected at most "
                        f"{_MOST_PIXELS:,}"
                    )
                image.load()
                return ImageOps.exif_transpose(image)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except UserError:
        raise
    except Exception as error:  # decoders raise what they like
        raise UserError(f"{path}: not a readable picture ({one_line(error)})") from error
