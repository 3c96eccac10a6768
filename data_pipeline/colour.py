"""Colours of every pixel format to 8-bit sRGB on white."""

from __future__ import annotations

import io
import struct
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageOps

from data_pipeline.row import Rejection

Pixels = npt.NDArray[np.uint8]  # [H, W, C]
# Whatever a decoder may raise on hostile bytes, short of ending the process.
DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    SyntaxError,
    IndexError,
    KeyError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    EOFError,
    MemoryError,
    RuntimeError,
    NotImplementedError,
    struct.error,
    Image.DecompressionBombError,
)
_SRGB = ImageCms.createProfile("sRGB")
_WHITE = (255, 255, 255)
_STRIP = 256  # rows


def to_srgb(pixels: Pixels, profile: bytes) -> Pixels:
    """RGB or gray pixels by their ICC profile; unchanged when the profile is sRGB or unusable."""
    mode = "L" if pixels.shape[2] == 1 else "RGB"
    transform = _transform(profile, mode)
    if transform is None:
        return pixels
    image = Image.fromarray(pixels[:, :, 0] if mode == "L" else pixels)
    return np.asarray(_applied(image, transform))


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> Any:
    """A transform from (profile, mode) to sRGB; None when there is nothing to do."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if mode == "RGB" and "srgb" in ImageCms.getProfileDescription(opened).lower():
            return None
        return ImageCms.buildTransform(opened, _SRGB, mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def on_white(image: Image.Image, factor: int = 1) -> Pixels:
    """A loaded picture as RGB pixels [H, W, 3], scaled down by a whole factor.

    It is closed: of a large picture, which has hundreds of megabytes, each step's outcome takes
    the place of what it was made from.

    Raises:
        Rejection: the pixel format has no 8-bit colours to give.
    """
    image = instead_of(image, _plain(image))
    if factor > 1:
        image = instead_of(image, image.reduce(factor))
    profile = image.info.get("icc_profile")
    alpha = image.getchannel("A") if image.mode in ("RGBA", "LA") else None
    if image.mode == "CMYK":
        image = instead_of(image, _from_cmyk(image, profile))
    elif image.mode not in ("L", "RGB"):
        image = instead_of(image, image.convert("L" if image.mode == "LA" else "RGB"))
    if profile and image.mode in ("L", "RGB"):
        transform = _transform(bytes(profile), image.mode)
        image = instead_of(image, image if transform is None else _applied(image, transform))
    if image.mode != "RGB":
        image = instead_of(image, image.convert("RGB"))
    if alpha is not None:
        image.paste(_WHITE, mask=ImageOps.invert(alpha))
    pixels = _pixels(image)
    image.close()
    return pixels


def instead_of(old: Image.Image, new: Image.Image) -> Image.Image:
    """The new picture; the old one's memory is free, whoever may still hold it."""
    if new is not old:
        old.close()
    return new


def _pixels(image: Image.Image) -> Pixels:
    """An RGB picture's pixels [H, W, 3]; Pillow itself would copy them three times."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, _STRIP):
        bottom = min(top + _STRIP, image.height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return pixels


def _plain(image: Image.Image) -> Image.Image:
    """The picture in one of L, LA, RGB, RGBA, CMYK."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):
        plain = _from_deep(image)
    elif image.mode in ("L", "LA", "RGB", "RGBA", "CMYK") and not _has_colour_key(image):
        return image
    elif image.mode == "1":
        plain = image.convert("RGBA" if _has_colour_key(image) else "L")
    elif image.mode in ("F", "LAB", "HSV"):
        raise Rejection("unsupported_image", f"pixels of kind {image.mode}")
    else:
        plain = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if profile:
        plain.info["icc_profile"] = profile
    return plain


def _has_colour_key(image: Image.Image) -> bool:
    return "transparency" in image.info


def _from_deep(image: Image.Image) -> Image.Image:
    """16-bit gray to 8 bits; one gray value may be transparent."""
    deep = np.asarray(image)
    if deep.size and (deep.min() < 0 or deep.max() > 65535):
        raise Rejection("unsupported_image", "32-bit gray beyond the range of 16 bits")
    levels = np.empty(deep.shape, np.uint8)
    for start in range(0, len(deep), _STRIP):  # a large picture in 64 bits would take too much
        strip = deep[start : start + _STRIP].astype(np.int64)
        levels[start : start + _STRIP] = (strip * 255 + 32767) // 65535
    gray = Image.fromarray(levels)
    key = image.info.get("transparency")
    if not isinstance(key, int):
        return gray
    alpha = Image.fromarray(np.where(deep == key, 0, 255).astype(np.uint8))
    return Image.merge("LA", (gray, alpha))


def _from_cmyk(image: Image.Image, profile: bytes | None) -> Image.Image:
    transform = _transform(bytes(profile), "CMYK") if profile else None
    if transform is None:
        return image.convert("RGB")
    converted = _applied(image, transform)
    converted.info.pop("icc_profile", None)
    return converted


def _applied(image: Image.Image, transform: Any) -> Image.Image:
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None, "only in-place transforms give nothing"
    return converted
