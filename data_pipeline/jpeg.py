"""Which JPEG files can be stored as they are: plain colours, nothing beside the picture."""

from __future__ import annotations

import re

import simplejpeg

_SOI, _EOI, _SOS, _DQT, _DHT, _DRI, _APP0, _APP14 = 0xD8, 0xD9, 0xDA, 0xDB, 0xC4, 0xDD, 0xE0, 0xEE
_FRAMES = (0xC0, 0xC2)  # baseline and progressive, Huffman coded
_JFIF = re.compile(rb"JFIF\0.{7}\0\0", re.DOTALL)  # without a thumbnail
_ADOBE = re.compile(rb"Adobe.{6}\x01", re.DOTALL)  # YCbCr
_NEXT_MARKER = re.compile(rb"\xff[^\0\xd0-\xd7\xff]")  # in a scan: no stuffing, restart or fill


def is_plain(data: bytes) -> bool:
    """Whether a JPEG is whole and holds nothing but a picture in RGB.

    That is one frame of 8 bits and three components in YCbCr, baseline or progressive, decoded
    without a warning; no EXIF, XMP, ICC profile, comment, thumbnail or other application's data;
    and no byte after its end.
    """
    return _has_plain_form(data) and _is_whole(data)


def _has_plain_form(data: bytes) -> bool:
    if data[:2] != bytes((0xFF, _SOI)):
        return False
    place, frames, said_colours = 2, 0, False
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        body = data[place + 4 : end]
        if marker in (_APP0, _APP14):
            if not (_JFIF if marker == _APP0 else _ADOBE).fullmatch(body):
                return False
            said_colours = True
        elif marker in _FRAMES:
            if not _is_colour(body, said_colours):
                return False
            frames += 1
        elif marker == _SOS:
            following = _NEXT_MARKER.search(data, end)
            if following is None:
                return False
            end = following.start()
            if data[end:] == bytes((0xFF, _EOI)):
                return frames == 1
        elif marker not in (_DQT, _DHT, _DRI):
            return False
        place = end
    return False


def _is_whole(data: bytes) -> bool:
    try:
        simplejpeg.decode_jpeg(data, strict=True)
    except ValueError:
        return False
    return True


def _is_colour(frame: bytes, said: bool) -> bool:
    """A frame header's precision and components; where no marker says YCbCr, their names do."""
    return frame[:1] == b"\x08" and frame[5:6] == b"\x03" and (said or frame[6::3] == b"\1\2\3")
