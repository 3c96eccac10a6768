"""What a JPEG's header says, before anything is decoded."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from data_pipeline.row import Rejection

_ORIENTATION = 0x0112
_TABLES = (0xC4, 0xDD, 0xFE)  # Huffman tables, restart interval, comment: the decoder's matter
_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
_SCAN = 0xDA


@dataclass(frozen=True)
class JpegHeader:
    """Sides as stored, Pillow's mode (L, RGB, CMYK), EXIF's orientation (1 to 8), ICC profile."""

    width: int
    height: int
    mode: str
    orientation: int = 1
    profile: bytes | None = None

    @property
    def turned(self) -> bool:
        """Whether the picture is shown with its sides exchanged."""
        return self.orientation >= 5


def read_header(data: bytes) -> JpegHeader:
    """The header as Pillow understands it; the usual kind is read without Pillow.

    Raises:
        Rejection: not a JPEG of 8 bits. Whatever Pillow raises of damaged headers.
    """
    return _plain(data) or _by_pillow(data)


def open_jpeg(data: bytes) -> Image.Image:
    """Pillow's picture, not yet decoded; raises as `read_header` does."""
    try:
        return Image.open(io.BytesIO(data), formats=("JPEG",))
    except UnidentifiedImageError:
        if (bits := _precision(data)) not in (None, 8):
            raise Rejection("unsupported_image", f"a JPEG of {bits} bits a sample") from None
        raise


def _by_pillow(data: bytes) -> JpegHeader:
    image = open_jpeg(data)
    orientation, profile = _orientation(image), image.info.get("icc_profile")
    return JpegHeader(*image.size, image.mode, orientation, profile or None)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # EXIF of any kind of damage means that there is no orientation
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _plain(data: bytes) -> JpegHeader | None:
    """The header of a JPEG that holds no EXIF, profile or Adobe marker and looks well so far."""
    place, found = 2, None
    while place + 4 <= len(data) and data[place] == 0xFF:
        kind, length = data[place + 1], data[place + 2] << 8 | data[place + 3]
        body = place + 4
        if kind == _SCAN:
            return found if place + 2 + length <= len(data) else None
        if kind == 0xDB:  # quantisation tables of 8 bits
            if length % 65 != 2 or any(data[at] > 3 for at in range(body, place + 2 + length, 65)):
                return None
        elif kind == 0xE0:
            if length < 16 or data[body : body + 5] != b"JFIF\0":
                return None
        elif kind in _FRAMES:
            found = _frame(data[body : place + 2 + length]) if found is None else None
            if found is None:
                return None
        elif kind not in _TABLES or length < 2:
            return None
        place += 2 + length
    return None


def _frame(body: bytes) -> JpegHeader | None:
    """Of a frame of 8 bits with one or three components."""
    if len(body) < 6 or body[0] != 8 or body[5] not in (1, 3) or len(body) != 6 + 3 * body[5]:
        return None
    height, width = body[1] << 8 | body[2], body[3] << 8 | body[4]
    if not 0 < width * height <= (Image.MAX_IMAGE_PIXELS or 0):
        return None  # Pillow has a word on bombs
    return JpegHeader(width, height, "L" if body[5] == 1 else "RGB")


def _precision(data: bytes) -> int | None:
    """Bits a sample that a JPEG's frame header declares, if it gets that far."""
    place = 2
    while place + 5 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return data[place + 4]
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return None
