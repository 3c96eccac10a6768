"""A CLIP's preprocessing up to the tensor, with Pillow alone: what workers send to the actors.

It gives the pixels of open_clip's `image_transform_v2` (tests compare bits), which needs torch;
workers that only cut pictures stay small without it and start at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Crop:
    """How a CLIP wants its pictures: sides, and how they are come by."""

    height: int
    width: int
    resize_mode: Literal["shortest", "longest", "squash"] = "shortest"
    interpolation: str = "bicubic"  # or bilinear
    fill: int = 0  # beside a picture that is narrower, for `longest`

    @staticmethod
    def of(config: Mapping[str, Any]) -> Crop:
        """The crop of open_clip's preprocessing config."""
        size = config["size"]
        height, width = (size, size) if isinstance(size, int) else size[-2:]
        return Crop(
            height,
            width,
            config.get("resize_mode") or "shortest",
            config.get("interpolation") or "bicubic",
            config.get("fill_color") or 0,
        )

    def __call__(self, picture: Pixels) -> Pixels:
        """RGB [H, W, 3], or [H, W, 4] whose last channel is left out, to [height, width, 3]."""
        image = _image(picture)
        sides = self._scaled(image.width, image.height)
        if sides != image.size:
            image = image.resize(sides, self._filter())
        return np.asarray(_centre(image, self.width, self.height, self.fill))[:, :, :3]

    def _scaled(self, width: int, height: int) -> tuple[int, int]:
        """Width and height before the middle is cut out."""
        if self.resize_mode == "squash":
            return self.width, self.height
        ratios = width / self.width, height / self.height
        if self.resize_mode == "longest" or self.width != self.height:
            ratio = max(ratios) if self.resize_mode == "longest" else min(ratios)
            return max(1, round(width / ratio)), max(1, round(height / ratio))
        short, long = sorted((width, height))
        scaled = int(self.width * long / short)
        return (self.width, scaled) if width <= height else (scaled, self.width)

    def _filter(self) -> Image.Resampling:
        # Of a side that is not square open_clip knows one filter.
        square = self.width == self.height or self.resize_mode != "shortest"
        if self.interpolation == "bilinear" and square:
            return Image.Resampling.BILINEAR
        return Image.Resampling.BICUBIC


def _image(picture: Pixels) -> Image.Image:
    """Pillow holds RGB in four bytes: pixels that come so are taken over as they lie."""
    if picture.shape[2] == 3:
        return Image.fromarray(picture)
    size = (picture.shape[1], picture.shape[0])
    return Image.frombuffer("RGBX", size, picture, "raw", "RGBX", 0, 1)


def _centre(image: Image.Image, width: int, height: int, fill: int) -> Image.Image:
    """The middle of these sides; what is missing beside it is filled."""
    lacking = max(0, width - image.width), max(0, height - image.height)
    if any(lacking):
        left, top = lacking[0] // 2, lacking[1] // 2
        border = (left, top, lacking[0] - left, lacking[1] - top)
        image = ImageOps.expand(image, border, (fill,) * len(image.getbands()))
    left, top = round((image.width - width) / 2.0), round((image.height - height) / 2.0)
    return image.crop((left, top, left + width, top + height))
