"""Whole files of every kind, small, to be damaged."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageCms

_EVIL_BYTES = 200_000  # larger ones make slow cases and no others
PICTURES = ("jpeg", "png", "gif", "webp", "bmp", "tiff", "avif", "jp2", "ico", "ppm", "evil")
INPUTS = ("tar", "csv", "jsonl", "parquet")
READERS = ("tarheader", "jpegheader", "csvrows", "jsonrows")
ANSWERS = ("http",)
KINDS = (*PICTURES, *INPUTS, *READERS, *ANSWERS)
SUFFIX = {"csv": ".csv", "jsonl": ".jsonl", "parquet": ".parquet", "tar": ".tar"}


def seeds(kind: str, evil: Path | None = None) -> list[bytes]:
    """Whole files of one of KINDS; `evil` is the folder of odd pictures, if any."""
    if kind == "evil":
        files = sorted(p for p in (evil or Path("/nonexistent")).rglob("*") if p.is_file())
        small = [path.read_bytes() for path in files if path.stat().st_size <= _EVIL_BYTES]
        return small or seeds("png")
    if kind in ("tar", "tarheader"):
        return [_tar(how) for how in (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)]
    if kind == "csv":
        return [_csv(","), gzip.compress(_csv(","), mtime=0)]
    if kind == "jsonl":
        return [_json_lines(), gzip.compress(_json_lines(), mtime=0)]
    if kind == "parquet":
        return [_parquet(codec) for codec in ("snappy", "zstd", "none")]
    if kind == "jpegheader":
        return [_up_to_scan(data) for data in _pictures()["jpeg"]]
    if kind == "csvrows":
        return [_csv(",").partition(b"\n")[2], b'1,"a\nb","c ""d"""\r\n\n2,e,\xc3\xbc\n']
    if kind == "jsonrows":
        return [_json_lines(), b'{"caption": ["a"], "x": {"y": 1e400}}\n\n{"caption": "\\ud800"}\n']
    if kind == "http":
        return _answers()
    return _pictures()[kind]


def _pictures() -> dict[str, list[bytes]]:
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (9, 12, 3), np.uint8)
    rgb = Image.fromarray(small).resize((80, 60), Image.Resampling.BICUBIC)
    grey, palette, alpha = rgb.convert("L"), rgb.convert("P"), rgb.convert("RGBA")
    alpha.putalpha(grey)
    deep = Image.fromarray(random.integers(0, 65536, (40, 30), np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = profile[:24] + bytes(12) + profile[36:]  # without the time of day
    more: dict[str, Any] = {"save_all": True, "append_images": [rgb.rotate(90), rgb]}
    return {
        "jpeg": [
            _saved(rgb, "JPEG"),
            _saved(rgb, "JPEG", progressive=True, exif=exif, icc_profile=profile),
            _saved(grey, "JPEG", restart_marker_blocks=3),
            _saved(rgb.convert("CMYK"), "JPEG"),
        ],
        "png": [
            _saved(alpha, "PNG", icc_profile=profile),
            _saved(palette, "PNG", transparency=3),
            _saved(deep, "PNG"),
            _saved(rgb, "PNG", **more),
        ],
        "gif": [_saved(palette, "GIF"), _saved(rgb, "GIF", **more)],
        "webp": [
            _saved(rgb, "WEBP"),
            _saved(alpha, "WEBP", lossless=True),
            _saved(rgb, "WEBP", **more),
        ],
        "bmp": [_saved(rgb, "BMP"), _saved(palette, "BMP"), _saved(rgb.convert("1"), "BMP")],
        "tiff": [
            _saved(rgb, "TIFF"),
            _saved(palette, "TIFF", compression="tiff_lzw"),
            _saved(rgb, "TIFF", compression="jpeg"),
            _saved(deep, "TIFF", compression="tiff_adobe_deflate"),
            _saved(rgb.convert("CMYK"), "TIFF", compression="packbits"),
            _saved(rgb.convert("1"), "TIFF", compression="group4"),
        ],
        "avif": [_saved(rgb, "AVIF"), _saved(alpha, "AVIF", quality=30)],
        "jp2": [_saved(rgb, "JPEG2000"), _saved(grey, "JPEG2000", quality_layers=[20])],
        "ico": [_saved(rgb, "ICO"), _saved(alpha, "ICO", bitmap_format="bmp")],
        "ppm": [_saved(rgb, "PPM"), _saved(grey, "PPM"), b"P3\n2 2\n255\n" + b"9 8 7 " * 4],
    }


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _up_to_scan(jpeg: bytes) -> bytes:
    """A JPEG's header, that of its first scan included."""
    scan = jpeg.index(b"\xff\xda")
    return jpeg[: scan + 2 + int.from_bytes(jpeg[scan + 2 : scan + 4], "big")]


def _rows() -> list[dict[str, Any]]:
    return [
        {"url": f"http://host/{i}.jpg", "caption": f"a picture, number {i}", "width": 10 * i}
        for i in range(12)
    ]


def _tar(how: int) -> bytes:
    picture, file = seeds("jpeg")[0], io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=how) as tar:
        for i, row in enumerate(_rows()[:4]):
            texts = (row["caption"].encode(), json.dumps(row).encode())
            for suffix, data in zip(("jpg", "txt", "json"), (picture, *texts), strict=True):
                info = tarfile.TarInfo(f"folder/{'n' * 120 if i == 2 else i}.{suffix}"[:250])
                if how == tarfile.USTAR_FORMAT:
                    info.name = f"folder/{i}.{suffix}"
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "../../etc/passwd"
        tar.addfile(link)
    return file.getvalue()


def _csv(delimiter: str) -> bytes:
    rows = _rows()
    lines = [delimiter.join(rows[0])]
    lines += [delimiter.join(f'"{value}"' for value in row.values()) for row in rows]
    return "\n".join(lines).encode()


def _json_lines() -> bytes:
    return "\n".join(json.dumps(row) for row in _rows()).encode()


def _parquet(codec: str) -> bytes:
    rows = [{**row, "jpg": seeds("jpeg")[0][:300], "tags": ["a", "b"]} for row in _rows()]
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=5, compression=codec)
    return file.getvalue()


def _answers() -> list[bytes]:
    """What servers send, from the first byte to the last."""
    body = bytes(range(256)) * 4
    packed = gzip.compress(body, mtime=0)
    bomb, large = (gzip.compress(bytes(size), mtime=0) for size in (3 << 20, 3 << 19))
    gzipped = b"Content-Encoding: gzip"
    chunked = b"Transfer-Encoding: chunked"
    robots = b"User-agent: *\nDisallow: /private\nAllow: /*.jpg$\nCrawl-delay: 0.01\n"
    return [
        _answer(body, b"Content-Type: image/jpeg", b"X-Robots-Tag: unclip: nofollow, all"),
        _answer(packed, gzipped),
        _answer(bomb, gzipped),
        _answer(large, gzipped),
        _answer(_chunks(body), chunked),
        _answer(_chunks(packed), chunked, b"Content-Encoding: deflate"),
        _answer(robots, b"Content-Type: text/plain; charset=utf-8"),
        _answer(b"", b"Location: next?a=b#c", status=b"302 Found"),
        _answer(b"busy", b"Retry-After: 0", status=b"503 Service Unavailable"),
        b"HTTP/1.1 100 Continue\r\n\r\n" + _answer(body, b"Connection: close"),
        b"HTTP/1.0 200 OK\r\n\r\n" + body,
    ]


def _answer(body: bytes, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    lines = [b"HTTP/1.1 " + status, *headers]
    if b"Transfer-Encoding: chunked" not in headers:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*lines, b"", body])


def _chunks(body: bytes) -> bytes:
    parts = [body[start : start + 100] for start in range(0, len(body), 100)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
