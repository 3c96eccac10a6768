"""The header that is read without Pillow is the one that Pillow reads."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from data_pipeline import jpeg_header
from data_pipeline.jpeg_header import JpegHeader


def _jpeg(width: int = 40, height: int = 24, mode: str = "RGB", **options: object) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


_PLAIN = {
    "rgb": _jpeg(),
    "grey": _jpeg(mode="L"),
    "progressive": _jpeg(progressive=True),
    "comment": _jpeg(comment=b"words"),
    "restarts": _jpeg(restart_marker_blocks=2),
    "444": _jpeg(subsampling=0),
    "simplejpeg": simplejpeg.encode_jpeg(np.zeros((9, 13, 3), np.uint8)),
}


@pytest.mark.parametrize("name", _PLAIN)
def test_the_usual_kind_needs_no_pillow(name: str) -> None:
    data = _PLAIN[name]
    assert jpeg_header._plain(data) == jpeg_header._by_pillow(data)


def test_metadata_is_left_to_pillow() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = _jpeg(exif=exif)
    assert jpeg_header._plain(turned) is None
    assert jpeg_header.read_header(turned) == JpegHeader(40, 24, "RGB", 6)
    assert jpeg_header.read_header(turned).turned
    assert jpeg_header._plain(_jpeg(icc_profile=b"\0" * 200)) is None
    assert jpeg_header.read_header(_jpeg(mode="CMYK")).mode == "CMYK"


def _outcome(data: bytes) -> object:
    try:
        return jpeg_header._by_pillow(data)
    except Exception as error:
        return type(error)


def test_damaged_headers_agree_with_pillow() -> None:
    """Bytes changed, dropped and doubled: what is read without Pillow, Pillow reads the same."""
    chance = random.Random(0)
    read = 0
    for _ in range(6000):
        data = bytearray(chance.choice(list(_PLAIN.values())))
        header = data.index(b"\xff\xda")
        for _ in range(chance.choice((1, 1, 2, 4))):
            place = chance.randrange(2, header)
            kind = chance.randrange(3)
            if kind == 0:
                data[place] = chance.choice((0, 1, 8, 12, 0xFF, chance.randrange(256)))
            elif kind == 1:
                del data[place : place + chance.choice((1, 2, 19))]
            else:
                data[place:place] = data[place : place + chance.choice((1, 2, 67))]
        plain = jpeg_header._plain(bytes(data))
        if plain is not None:
            read += 1
            assert plain == _outcome(bytes(data)), bytes(data[:header]).hex()
    assert read > 1000


def test_real_jpegs(shared_data: Path) -> None:
    for folder in ("photos", "evil"):
        for path in sorted((shared_data / folder).rglob("*.jp*g")):
            data = path.read_bytes()
            if (plain := jpeg_header._plain(data)) is not None:
                assert plain == _outcome(data), path
