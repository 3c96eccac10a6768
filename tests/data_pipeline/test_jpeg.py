"""Plain JPEGs that fit already are stored byte for byte when that is asked for; no others are."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from data_pipeline.config import Mode, PrepareConfig
from data_pipeline.jpeg import is_plain
from data_pipeline.pipeline import prepare
from data_pipeline.pixels import encode
from data_pipeline.row import Rejection
from data_pipeline.verify import verify

SIDE = 64
NOISE = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
PICTURE = Image.fromarray(NOISE)


def saved(image: Image.Image = PICTURE, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def stored(data: bytes, **settings: Any) -> bytes:
    return encode(data, PrepareConfig(image_size=SIDE, keep_jpeg=True, **settings))[0]


def by_opencv(*options: int) -> bytes:
    return bytes(cv2.imencode(".jpg", NOISE, list(options))[1])


PLAIN = {
    "pillow": saved(),
    "444": saved(subsampling=0, quality=90),
    "422": saved(subsampling=1),
    "progressive": saved(progressive=True),
    "restarts": saved(restart_marker_blocks=2),
    "opencv": by_opencv(),
    "opencv progressive": by_opencv(cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    "turbo": simplejpeg.encode_jpeg(NOISE),
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_ones_are_kept_byte_for_byte(name: str) -> None:
    assert stored(PLAIN[name]) == PLAIN[name]
    assert encode(PLAIN[name], PrepareConfig(image_size=SIDE))[0] != PLAIN[name]


def with_segment(marker: int, body: bytes) -> bytes:
    data = PLAIN["pillow"]
    return data[:2] + bytes((0xFF, marker)) + (len(body) + 2).to_bytes(2, "big") + body + data[2:]


def with_exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(exif=exif)


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
OTHERS = {
    "turned": with_exif(6),
    "exif": with_exif(1),
    "icc": saved(icc_profile=SRGB),
    "comment": saved(comment=b"made by"),
    "xmp": with_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>"),
    "jfxx": with_segment(0xE0, b"JFXX\0\x10thumbnail"),
    "adobe without a transform": with_segment(0xEE, b"Adobe\0\x64\0\0\0\0\0"),
    "gray": saved(PICTURE.convert("L")),
    "cmyk": saved(PICTURE.convert("CMYK")),
    "rgb": saved(keep_rgb=True),
    "another revision": PLAIN["pillow"].replace(b"JFIF\0\1", b"JFIF\0\2", 1),
    "bytes after": PLAIN["pillow"] + b"tail",
    "picture after": PLAIN["pillow"] * 2,
}


@pytest.mark.parametrize("name", OTHERS)
def test_others_are_encoded_anew_and_are_plain_then(name: str) -> None:
    assert not is_plain(OTHERS[name])
    assert OTHERS[name] != stored(OTHERS[name])
    assert is_plain(stored(OTHERS[name]))


@pytest.mark.parametrize(
    ("mode", "size", "only_if_bigger", "kept"),
    [
        ("center_crop", (64, 64), False, True),
        ("center_crop", (64, 65), False, False),
        ("center_crop", (128, 128), False, False),
        ("center_crop", (40, 40), False, False),
        ("center_crop", (40, 40), True, True),
        ("center_crop", (40, 30), True, False),
        ("keep_ratio", (64, 100), False, True),
        ("keep_ratio", (65, 100), False, False),
        ("keep_ratio_largest", (64, 40), False, True),
        ("keep_ratio_largest", (100, 64), False, False),
        ("border", (64, 64), False, True),
        ("border", (64, 60), False, False),
        ("none", (123, 45), False, True),
    ],
)
def test_it_must_have_the_size_that_the_mode_gives(
    mode: Mode, size: tuple[int, int], only_if_bigger: bool, kept: bool
) -> None:
    data = saved(PICTURE.resize(size))
    found = stored(data, mode=mode, only_if_bigger=only_if_bigger)
    assert (found == data) == kept
    again = encode(data, PrepareConfig(image_size=SIDE, mode=mode, only_if_bigger=only_if_bigger))
    shape = simplejpeg.decode_jpeg(again[0]).shape
    assert simplejpeg.decode_jpeg(found).shape == shape


@given(st.sampled_from(sorted(PLAIN)), st.data())
def test_a_damaged_one_is_never_kept_as_it_is_unless_it_is_whole(
    name: str, data: st.DataObject
) -> None:
    broken = bytearray(PLAIN[name])
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    raw = bytes(broken[: data.draw(st.integers(1, len(broken)))])
    try:
        found = stored(raw, mode="none")
    except Rejection:
        return
    simplejpeg.decode_jpeg(found, strict=True)
    assert is_plain(found)


def test_a_dataset_of_kept_ones_is_whole(
    tmp_path: Path, pairs_folder: Callable[[Path, int], Path], ray_cluster: None
) -> None:
    folder = pairs_folder(tmp_path / "in", 3)
    for place, data in enumerate((PLAIN["pillow"], PLAIN["progressive"], OTHERS["icc"])):
        (folder / f"{place:05d}.jpg").write_bytes(data)
    prepare([folder], tmp_path / "out", "none", PrepareConfig(image_size=SIDE, keep_jpeg=True))
    assert verify(tmp_path / "out").problems == ()
    with tarfile.open(tmp_path / "out" / "shards" / "00000.tar") as tar:
        members = [tar.extractfile(name) for name in tar.getnames() if name.endswith(".jpg")]
        found = [member.read() for member in members if member is not None]
    assert found[:2] == [PLAIN["pillow"], PLAIN["progressive"]]
    assert found[2] != OTHERS["icc"]
