"""Sheets of captioned pictures as one image."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

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
    """Pictures (uint8 [S, S, 3]) in rows of `columns`, each `side` pixels wide, captions below."""
    if len(pictures) != len(captions):
        raise ValueError(f"captions: got {len(captions)}, expected {len(pictures)}")
    size = max(side // 16, 9)
    line = size + 3
    cell = side + _TEXT_LINES * line + _MARGIN
    rows = -(-len(pictures) // columns)
    width = columns * (side + _MARGIN) + _MARGIN
    sheet = Image.new("RGB", (width, rows * (cell + _MARGIN) + _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x = _MARGIN + index % columns * (side + _MARGIN)
        y = _MARGIN + index // columns * (cell + _MARGIN)
        image = Image.fromarray(picture)
        if image.width != side:
            image = image.resize((side, side), Image.Resampling.BICUBIC)
        sheet.paste(image, (x, y))
        # An outline, or a white picture could not be told from the sheet.
        draw.rectangle((x, y, x + side - 1, y + side - 1), outline=(190, 190, 190))
        lines = textwrap.wrap(caption, max(side * 2 // size, 8))[:_TEXT_LINES]
        draw.multiline_text((x, y + side + 3), "\n".join(lines), "black", _font(size), spacing=2)
    return sheet


def save_image(image: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")
