"""Sheets of captioned pictures as one image."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from base.files import atomic_path

Pixels = NDArray[np.uint8]

_TEXT_LINES = 4
_MARGIN = 8


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def caption_sheet(
    pictures: Sequence[Pixels], captions: Sequence[str], columns: int, side: int = 256
) -> Image.Image:
    """Pictures (uint8 [H, W, 3]) in rows of `columns`, captions below.

    Each is as large as a square of `side` pixels can hold, its proportions as they are.
    """
    if len(pictures) != len(captions):
        raise ValueError(f"captions: got {len(captions)}, expected {len(pictures)}")
    size = max(side // 16, 9)
    line = size + 3
    images = [ImageOps.contain(Image.fromarray(pixels), (side, side)) for pixels in pictures]
    tallest = max((image.height for image in images), default=0)
    cell = tallest + _TEXT_LINES * line + _MARGIN
    rows = -(-len(images) // columns)
    width = columns * (side + _MARGIN) + _MARGIN
    sheet = Image.new("RGB", (width, rows * (cell + _MARGIN) + _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x = _MARGIN + index % columns * (side + _MARGIN)
        y = _MARGIN + index // columns * (cell + _MARGIN)
        left = x + (side - image.width) // 2
        sheet.paste(image, (left, y))
        # An outline, or a white picture could not be told from the sheet.
        corner = (left + image.width - 1, y + image.height - 1)
        draw.rectangle((left, y, *corner), outline=(190, 190, 190))
        lines = textwrap.wrap(caption, max(side * 2 // size, 8))[:_TEXT_LINES]
        draw.multiline_text((x, y + tallest + 3), "\n".join(lines), "black", _font(size), spacing=2)
    return sheet


def save_image(image: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")
