"""Any bytes end as the right picture or as a rejection with a reason."""

import io
import struct
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from data_pipeline.decode import Limits, Picture, decode
from data_pipeline.resize import fit, needed_sides
from data_pipeline.row import Rejection
from data_pipeline.schema.dataset import REASONS

LIMITS = Limits(64_000_000)


def whole(data: bytes) -> Picture:
    """The picture without any scaling."""
    return decode(data, LIMITS, lambda w, h: (w, h))


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def psnr(left: np.ndarray, right: np.ndarray) -> float:
    error = np.mean((left.astype(float) - right.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def smooth(width: int, height: int) -> Image.Image:
    small = np.random.default_rng(width).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("fill", [b"", b"\xff\xff"])
def test_a_jpeg_of_12_bits_is_called_what_it_is(fill: bytes) -> None:
    buffer = io.BytesIO()
    smooth(32, 32).save(buffer, "JPEG")
    data = buffer.getvalue()
    place = data.index(b"\xff\xc0")
    twelve = data[:place] + fill + data[place : place + 4] + b"\x0c" + data[place + 5 :]
    with pytest.raises(Rejection) as caught:
        whole(twelve)
    assert (caught.value.reason, caught.value.message) == (
        "unsupported_image",
        "a JPEG of 12 bits a sample",
    )


@pytest.mark.parametrize("family", ["Portrait", "Landscape"])
def test_exif_orientations_all_show_the_same_picture(shared_data: Path, family: str) -> None:
    pictures = [
        decode(path.read_bytes(), LIMITS, lambda w, h: needed_sides("center_crop", 64, w, h))
        for path in sorted((shared_data / "evil" / "exif").glob(f"{family}_*.jpg"))
    ]
    small = [fit(picture.pixels, "keep_ratio", 64, False) for picture in pictures]
    assert len(small) >= 2
    for other, picture in zip(small[1:], pictures[1:], strict=True):
        assert (picture.width, picture.height) == (pictures[0].width, pictures[0].height)
        assert psnr(small[0], other) > 25


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_each_orientation_matches_pillow(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(smooth(60, 40), kind, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    picture = whole(data)
    assert picture.pixels.shape == expected.shape
    assert (picture.width, picture.height) == (expected.shape[1], expected.shape[0])
    assert psnr(picture.pixels, expected) > 40


def test_cmyk_looks_like_the_same_picture_in_rgb(shared_data: Path) -> None:
    folder = shared_data / "evil" / "pillow"
    cmyk = whole((folder / "pil_sample_cmyk.jpg").read_bytes()).pixels
    rgb = whole((folder / "pil_sample_rgb.jpg").read_bytes()).pixels
    assert psnr(cmyk, rgb) > 18  # inverted colours would give 6


def test_deep_gray_of_many_rows() -> None:
    """It is brought to 8 bits in strips."""
    deep = np.random.default_rng(0).integers(0, 65536, (600, 5), np.uint16)
    wanted = (deep.astype(np.int64) * 255 + 32767) // 65535
    assert (whole(saved(Image.fromarray(deep), "PNG")).pixels == wanted[..., None]).all()


def test_sixteen_bit_gray_is_scaled_not_clipped() -> None:
    deep = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    pixels = whole(saved(Image.fromarray(deep), "PNG")).pixels
    assert np.abs(pixels[:, :, 0].astype(int) - deep / 257).max() <= 1
    assert (pixels[:, :, 0] == pixels[:, :, 2]).all()


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_alpha_is_composed_on_white(kind: str) -> None:
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[..., 0] = 200
    pixels[:4, :, 3], pixels[4:, :, 3] = 255, 0
    pixels[:, 4:, 3] //= 2
    shown = whole(saved(Image.fromarray(pixels), kind, lossless=True)).pixels
    assert tuple(shown[0, 0]) == (200, 0, 0)
    assert tuple(shown[7, 7]) == (255, 255, 255)
    assert abs(int(shown[0, 7, 1]) - 128) <= 1


@pytest.mark.parametrize(
    ("mode", "options"),
    [("L", {"transparency": 7}), ("P", {"transparency": 0}), ("RGB", {"transparency": (1, 2, 3)})],
)
def test_colour_keys_are_composed_on_white(mode: str, options: dict[str, object]) -> None:
    image = Image.new(mode, (4, 4), {"L": 7, "P": 0, "RGB": (1, 2, 3)}[mode])
    assert (whole(saved(image, "PNG", **options)).pixels == 255).all()


def _wide_profile() -> bytes:
    """An RGB profile whose red and green are exchanged: the effect cannot be missed."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack(">I", profile[128:132])[0]
    for i in range(count):
        entry = 132 + 12 * i
        tag = bytes(profile[entry : entry + 4])
        swapped = {b"rXYZ": b"gXYZ", b"gXYZ": b"rXYZ"}.get(tag, tag)
        profile[entry : entry + 4] = swapped
    return bytes(profile).replace(b"s\0R\0G\0B", b"m\0i\0n\0e").replace(b"sRGB", b"mine")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_icc_profiles_are_applied(kind: str) -> None:
    image = Image.new("RGB", (32, 32), (200, 30, 40))
    data = saved(image, kind, icc_profile=_wide_profile())
    red, green, _ = (int(v) for v in whole(data).pixels[16, 16])
    assert green > 150 > red


def test_a_picture_over_the_cap_is_refused_before_decoding() -> None:
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    import zlib

    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    data += struct.pack(">I", zlib.crc32(chunk)) + b"\0\0\0\0IEND\xaeB`\x82"
    with pytest.raises(Rejection) as caught:
        whole(data)
    assert caught.value.reason == "too_many_pixels"


@pytest.mark.parametrize(
    ("limits", "reason"),
    [(Limits(10**6, min_side=50), "too_small"), (Limits(10**6, max_aspect=2.0), "aspect")],
)
def test_filters_name_their_reason(limits: Limits, reason: str) -> None:
    with pytest.raises(Rejection) as caught:
        decode(saved(smooth(100, 40), "PNG"), limits, lambda w, h: (w, h))
    assert caught.value.reason == reason


@given(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP"]), st.floats(0.02, 0.97))
def test_a_picture_cut_short_is_never_kept(kind: str, share: float) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    data = saved(Image.fromarray(noise), kind)
    with pytest.raises(Rejection) as caught:
        whole(data[: max(1, int(len(data) * share))])
    assert caught.value.reason in REASONS


@given(st.data())
def test_damaged_bytes_end_as_a_picture_or_a_reason(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"]))
    broken = bytearray(saved(smooth(33, 21), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    reason, channels = "", 0
    try:
        channels = whole(bytes(broken)).pixels.shape[2]
    except Rejection as why:
        reason = why.reason
    assert reason in REASONS or channels == 3


@given(st.binary(max_size=200))
@example(b"")
@example(b"<svg xmlns='x'/>")
@example(b"\xff\xd8\xff")
def test_bytes_of_no_picture_are_rejected(data: bytes) -> None:
    with pytest.raises(Rejection) as caught:
        whole(data)
    assert caught.value.reason in REASONS


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_scaled_decoding_equals_the_full_picture_averaged(
    kind: str, picture_bytes: Callable[..., bytes]
) -> None:
    data = picture_bytes(5, 1024, 768, kind)
    scaled = decode(data, LIMITS, lambda w, h: needed_sides("center_crop", 128, w, h))
    assert scaled.pixels.shape[0] < 768
    assert min(scaled.pixels.shape[:2]) >= 128
    assert (scaled.width, scaled.height) == (1024, 768)
    got = fit(scaled.pixels, "center_crop", 128, False)
    full = whole(data).pixels[:, 128 : 128 + 768]
    assert psnr(got, cv2.resize(full, (128, 128), interpolation=cv2.INTER_AREA)) > 45


def test_formats_that_need_more_memory_have_half_the_cap() -> None:
    limits = Limits(60 * 60)
    assert decode(saved(smooth(60, 60), "PNG"), limits, lambda w, h: (w, h)).width == 60
    with pytest.raises(Rejection, match="the cap is 1800"):
        decode(saved(smooth(60, 60), "WEBP"), limits, lambda w, h: (w, h))


def test_a_large_picture_is_held_twice_at_the_most(tmp_path: Path) -> None:
    """Of 64 million pixels a worker would otherwise take more than a gigabyte."""
    side = 4000
    image = Image.new("RGBA", (side, side), (10, 200, 30, 128))
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    del image
    Path("/proc/self/clear_refs").write_text("5")  # begins a new peak
    before = resident_peak()
    picture = decode(file.getvalue(), Limits(1 << 30), lambda width, height: (width, height))
    assert picture.pixels.shape == (side, side, 3)
    assert (
        resident_peak() - before < 12 * side * side
    )  # 4 of Pillow's bytes and 3 of ours, and some


def resident_peak() -> int:
    """Bytes of resident memory at the most."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
