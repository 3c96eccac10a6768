"""A user's pictures and masks, read for a cascade."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from base.errors import UserError, one_line
from trainer.loader.pictures import middle, square

_MOST_PIXELS = 100_000_000  # of what is read, and of what is asked for


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
        UserError: it is missing, no picture, of another size, or has nothing to paint in the
            middle square.
    """
    mask = torch.from_numpy(np.array(_open(path).convert("L"))) > 127
    if mask.shape != picture.shape[1:]:
        got, expected = (f"{size[1]}×{size[0]}" for size in (mask.shape, picture.shape[1:]))
        raise UserError(f"{path}: got {got} pixels, expected {expected} as in the picture")
    if not mask.any():
        raise UserError(f"{path}: nothing in it is white, so there is nothing to paint")
    _require_seen(mask, f"{path}: nothing is white")
    return mask


def box_mask(box: tuple[int, int, int, int], picture: Tensor) -> Tensor:
    """True inside a box (left, top, right, bottom) of a picture. bool [H, W]

    Raises:
        UserError: nothing of it is in the picture, or in its middle square.
    """
    left, top, right, bottom = box
    mask = torch.zeros(picture.shape[1:], dtype=torch.bool)
    mask[top:bottom, left:right] = True
    if not mask.any():
        height, width = picture.shape[1:]
        raise UserError(f"--box: got {list(box)}, which lies outside the {width}×{height} picture")
    _require_seen(mask, f"--box: got {list(box)}, of which nothing lies")
    return mask


def squared_mask(mask: Tensor, side: int) -> Tensor:
    """The middle square of a mask: a pixel with any part of it belongs to it.

    bool [H, W] → [side, side]
    """
    inside = mask[middle(*mask.shape)]
    return F.adaptive_max_pool2d(inside[None].float(), side)[0] > 0


def require_size(size: tuple[int, int]) -> None:
    """Refuse a picture (height, width) that memory has no place for.

    Raises:
        UserError: it has more than 100 million pixels.
    """
    height, width = size
    if height * width > _MOST_PIXELS:
        raise UserError(
            f"size: got {width}×{height} pixels, expected at most {_MOST_PIXELS:,} of them"
        )


def squared(picture: Tensor, side: int) -> Tensor:
    """The middle square as the loader makes it. uint8 [3, H, W] → [3, side, side]."""
    made = square(picture.permute(1, 2, 0).numpy(), side)
    return torch.from_numpy(np.ascontiguousarray(made)).permute(2, 0, 1)


def fitted(pictures: Tensor, side: int) -> Tensor:
    """Pictures, uint8 [B, 3, H, W] → their middle squares, [B, 3, side, side]."""
    return torch.stack([squared(picture, side) for picture in pictures])


def _require_seen(mask: Tensor, fault: str) -> None:
    """Something of it is left in the middle square, which is all that a cascade sees."""
    rows, columns = middle(*mask.shape)
    if not mask[rows, columns].any():
        height, width = mask.shape
        raise UserError(
            f"{fault} in the middle square of the {width}×{height} picture, expected a part of "
            f"{[columns.start, rows.start, columns.stop, rows.stop]} to paint"
        )


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
