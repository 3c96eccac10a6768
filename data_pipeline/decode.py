"""Bytes of any picture to RGB pixels: sniffed, size-checked by the header, whole or rejected."""

from __future__ import annotations

import io
import re
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from base.errors import one_line
from data_pipeline.colour import DAMAGE, Pixels, instead_of, on_white, to_srgb
from data_pipeline.jpeg_header import open_jpeg, read_header
from data_pipeline.row import Rejection

_MAGIC: tuple[tuple[bytes, tuple[str, ...]], ...] = (
    (b"\xff\xd8\xff", ("JPEG",)),
    (b"\x89PNG\r\n\x1a\n", ("PNG",)),
    (b"GIF87a", ("GIF",)),
    (b"GIF89a", ("GIF",)),
    (b"BM", ("BMP",)),
    (b"II*\0", ("TIFF",)),
    (b"MM\0*", ("TIFF",)),
    (b"II+\0", ("TIFF",)),
    (b"\0\0\1\0", ("ICO",)),
    (b"\0\0\0\x0cjP  \r\n\x87\n", ("JPEG2000",)),
    (b"\xff\x4f\xff\x51", ("JPEG2000",)),
)
# What libjpeg warns of although every pixel is as it was stored. Extraneous bytes are harmless
# before a marker of the header alone: anywhere later they are what damaged data looks like.
_HARMLESS = re.compile(
    r"extraneous bytes before marker 0x(db|c[012]|e\w|fe|dd)|icc marker|jfif revision"
    r"|adobe color transform|sos parameters",
    re.IGNORECASE,
)
_ORIENTATION = 0x0112  # of EXIF
# Their decoders hold the picture more than twice; half the cap keeps all of it below 1 GB.
_HEAVY = {("WEBP",), ("AVIF",), ("JPEG2000",)}
Needed = Callable[[int, int], tuple[int, int]]  # (width, height) shown -> least sides wanted

# Warnings of Pillow concern metadata; every pixel that matters is checked here.
warnings.filterwarnings("ignore", module=r"PIL\..*")


@dataclass(frozen=True)
class Picture:
    """RGB pixels, perhaps scaled down while decoding, and the sides of the whole as shown."""

    pixels: Pixels  # [H, W, 3]
    width: int
    height: int


@dataclass(frozen=True)
class Limits:
    """What is refused by the header alone; 0 is off."""

    max_pixels: int
    min_side: int = 0
    max_aspect: float = 0.0

    def check(self, width: int, height: int) -> None:
        """Raises Rejection when (width, height) is out of bounds."""
        if width * height > self.max_pixels:
            message = f"{width}x{height} pixels, the cap is {self.max_pixels}"
            raise Rejection("too_many_pixels", message)
        if min(width, height) < max(1, self.min_side):
            raise Rejection("too_small", f"{width}x{height}, min_side is {self.min_side}")
        if self.max_aspect and max(width, height) > self.max_aspect * min(width, height):
            raise Rejection("aspect", f"{width}x{height}, max_aspect is {self.max_aspect}")


def decode(data: bytes, limits: Limits, needed: Needed) -> Picture:
    """The picture as people see it: oriented, in sRGB, on white, its first frame.

    JPEGs are scaled by the DCT while decoding, others by whole factors, never below what `needed`
    asks for.

    Raises:
        Rejection: with the reason; nothing else, whatever the bytes are.
    """
    if not data:
        raise Rejection("empty_image", "the picture has 0 bytes")
    try:
        formats = sniff(data)
        if formats == ("JPEG",):
            return _decode_jpeg(data, limits, needed)
        return _decode_other(data, formats, limits, needed)
    except DAMAGE as error:
        raise _explained(error) from error


def sniff(data: bytes) -> tuple[str, ...]:
    """Pillow's names of the formats that the first bytes can be; raises Rejection for none."""
    for magic, formats in _MAGIC:
        if data.startswith(magic):
            return formats
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ("WEBP",)
    if data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"avis", b"mif1"):
        return ("AVIF",)
    if data[:1] == b"P" and data[1:2] in b"123456fF" and data[2:3].isspace():
        return ("PPM",)
    head = data[:256].lstrip().lower()
    if head.startswith((b"<svg", b"%pdf")) or b"<svg" in head:
        raise Rejection("unsupported_image", "a vector graphic or document, not a raster picture")
    raise Rejection("not_an_image", f"starts with {data[:8].hex(' ')}")


def _decode_jpeg(data: bytes, limits: Limits, needed: Needed) -> Picture:
    header = read_header(data)
    shown = (header.width, header.height)[:: -1 if header.turned else 1]
    limits.check(*shown)
    if header.mode == "CMYK":
        return _finish(open_jpeg(data), limits, needed)
    min_width, min_height = needed(*shown)[:: -1 if header.turned else 1]
    space = "GRAY" if header.mode == "L" else "RGB"
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(
            data, space, min_height=min_height, min_width=min_width, min_factor=2, strict=True
        )
    except ValueError as error:
        if not _HARMLESS.search(str(error)):
            raise
        # Pillow passes over warnings, not over truncation
        return _finish(open_jpeg(data), limits, needed)
    pixels = to_srgb(pixels, header.profile) if header.profile else pixels
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    return Picture(_turned(pixels, header.orientation), *shown)


def _turned(pixels: Pixels, orientation: int) -> Pixels:
    """EXIF's eight orientations, undone (Exif 2.32, tag 0x0112)."""
    if orientation in (2, 4):
        pixels = pixels[:, ::-1] if orientation == 2 else pixels[::-1]
    elif orientation == 3:
        pixels = pixels[::-1, ::-1]
    elif orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
        if orientation in (6, 7):
            pixels = pixels[:, ::-1]
        if orientation in (7, 8):
            pixels = pixels[::-1]
    return pixels


def _decode_other(data: bytes, formats: tuple[str, ...], limits: Limits, needed: Needed) -> Picture:
    image = Image.open(io.BytesIO(data), formats=formats)
    limits.check(*image.size)
    if formats in _HEAVY:
        replace(limits, max_pixels=limits.max_pixels // 2).check(*image.size)
    if formats == ("PNG",):
        _check_png(data)
    return _finish(image, limits, needed)


def _finish(image: Image.Image, limits: Limits, needed: Needed) -> Picture:
    """Load, orient, scale down by a whole factor, bring to sRGB on white."""
    image.load()
    limits.check(*image.size)  # an icon's frame may differ from its directory
    try:
        if image.getexif().get(_ORIENTATION, 1) != 1:  # otherwise it would be copied as it is
            image = instead_of(image, ImageOps.exif_transpose(image))
    except Exception:
        image.info.pop("exif", None)
    width, height = image.size
    least_width, least_height = needed(width, height)
    factor = min(width // max(1, least_width), height // max(1, least_height))
    if least_width == width and least_height == height:
        factor = 1
    return Picture(on_white(image, max(1, factor)), width, height)


def _check_png(data: bytes) -> None:
    """The checksums of the chunks that hold the picture; Pillow passes over some of them."""
    place = 8
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        kind = data[place + 4 : place + 8]
        end = place + 8 + length
        if end + 4 > len(data):
            raise Rejection("truncated_image", f"the PNG ends inside its {kind!r} chunk")
        if kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            stored = int.from_bytes(data[end : end + 4], "big")
            if zlib.crc32(memoryview(data)[place + 4 : end]) != stored:
                raise Rejection("corrupt_image", f"wrong checksum of a {kind.decode()} chunk")
        if kind == b"IEND":
            return
        place = end + 4


def _explained(error: BaseException) -> Rejection:
    text = one_line(error)[:200]
    if isinstance(error, Image.DecompressionBombError):
        return Rejection("too_many_pixels", text)
    if isinstance(error, UnidentifiedImageError):
        return Rejection("corrupt_image", "the header cannot be read")
    lowered = text.lower()
    if "truncated" in lowered or "premature end" in lowered or "not enough image data" in lowered:
        return Rejection("truncated_image", text)
    return Rejection("corrupt_image", f"{type(error).__name__}: {text}")
