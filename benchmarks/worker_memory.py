"""Peak memory of workers over usual and hostile pictures: `python -m benchmarks.worker_memory`.

Usual: shards of 1,000 JPEGs of 512² from a parquet file with their bytes. Hostile: pictures of as
many pixels as the caps allow, in every format, some of them a few kilobytes as a file; and files
that declare more. Both also by their addresses, from a server on loopback, and with a CLIP in the
same pass. The peak is of resident memory of the worker that took most, everything in it; actors
are those that keep the CLIP, torch included.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.pixels import write_table
from benchmarks.server import serving
from data_pipeline.schema.dataset import read_dataset

_SIDE = 7_990  # 63.8 megapixels, below the cap of 64
_HEAVY_SIDE = 5_650  # of formats whose cap is half of it
_POLL = 0.1
_FETCH = ("fetch.allow_private=true", "fetch.robots=false", "fetch.max_bytes=268435456")


@dataclass
class Peak:
    """Megabytes of the hungriest Ray worker, CLIP's actor, and of the command itself."""

    worker: int = 0
    actor: int = 0
    driver: int = 0


def hostile() -> Iterator[tuple[str, bytes]]:
    """Names and bytes of pictures that are as large as they may be, or say that they are larger."""
    Image.MAX_IMAGE_PIXELS = None
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (50, 50, 3), np.uint8))
    large = coarse.resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
    half = coarse.resize((_HEAVY_SIDE, _HEAVY_SIDE), Image.Resampling.NEAREST)
    deep = Image.fromarray(np.full((_SIDE, _SIDE), 40_000, np.uint16))
    kinds: list[tuple[str, Image.Image, str, dict[str, Any]]] = [
        ("jpeg", large, "JPEG", {}),
        ("jpeg progressive", large, "JPEG", {"progressive": True}),
        ("jpeg cmyk", large.convert("CMYK"), "JPEG", {}),
        ("png", large, "PNG", {"compress_level": 1}),
        ("png alpha", large.convert("RGBA"), "PNG", {"compress_level": 1}),
        ("png 16 bits", deep, "PNG", {"compress_level": 1}),
        ("gif", large.convert("P"), "GIF", {}),
        ("bmp", large, "BMP", {}),
        ("tiff lzw", large, "TIFF", {"compression": "tiff_lzw"}),
        ("tiff cmyk", large.convert("CMYK"), "TIFF", {"compression": "tiff_adobe_deflate"}),
        ("webp", half, "WEBP", {"method": 0}),
        ("webp lossless", half.convert("RGBA"), "WEBP", {"lossless": True, "method": 0}),
        ("jpeg 2000", half, "JPEG2000", {"irreversible": True, "quality_layers": [200]}),
        ("avif", half, "AVIF", {"speed": 10, "quality": 30}),
        ("too many pixels", large.resize((9000, 9000)), "PNG", {"compress_level": 1}),
    ]
    for name, image, kind, options in kinds:
        file = io.BytesIO()
        image.save(file, kind, **options)
        yield name, file.getvalue()


def peak_of(command: list[str]) -> Peak:
    """Runs a command; what it and those that it started took at the most.

    Raises:
        SystemExit: the command failed.
    """
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak = Peak()
    while process.poll() is None:
        peak.driver = max(peak.driver, _peak(process.pid))
        for pid, name in _below(process.pid):
            if name.startswith(b"ray::ClipActor"):
                peak.actor = max(peak.actor, _peak(pid))
            else:
                peak.worker = max(peak.worker, _peak(pid))
        time.sleep(_POLL)
    if process.returncode:
        assert process.stderr is not None
        raise SystemExit(process.stderr.read().decode()[-1000:])
    return peak


def _below(pid: int) -> Iterator[tuple[int, bytes]]:
    """Ray's workers, with their names, among the processes that this one and they started."""
    try:
        children = Path(f"/proc/{pid}/task").glob("*/children")
        found = [int(word) for file in children for word in file.read_text().split()]
    except OSError:
        return
    for child in found:
        try:
            name = Path(f"/proc/{child}/cmdline").read_bytes()
        except OSError:
            continue
        if name.startswith(b"ray::"):
            yield child, name
        yield from _below(child)


def _peak(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(found[0].split()[1]) // 1024 if found else 0


def prepared(name: str, table: Path, *settings: str, clip: str = "none") -> None:
    """Prints a line of what a run over a table took."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        command = [sys.executable, "-m", "data_pipeline", "prepare", str(table), "--clip", clip]
        words = [word for setting in settings for word in ("--set", setting)]
        peak = peak_of([*command, "--out", str(out), *words])
        info = read_dataset(out)
    print(
        f"{name:24}{info.input:>8,}{info.kept:>8,}{peak.worker:>12,}{peak.actor:>12,}"
        f"{peak.driver:>12,}",
        flush=True,
    )


def usual(place: Path, count: int) -> None:
    """Shards as most are."""
    table, listed = place / "usual.parquet", place / "listed.parquet"
    write_table(table, count, None)
    prepared("usual", table)
    prepared("usual, a CLIP", table, clip="random:0")
    with serving(pq.read_table(table)["jpg"].to_pylist()) as port:
        by_address(listed, port, count)
        prepared("usual, fetched", listed, *_FETCH)


def by_address(table: Path, port: int, count: int) -> None:
    """A table of what a server on loopback serves."""
    urls = [f"http://127.0.0.1:{port}/{i}.jpg" for i in range(count)]
    pq.write_table(pa.table({"url": urls, "caption": ["a picture"] * count}), table)


def all_hostile(place: Path) -> None:
    """Pictures at the caps, in every way that they may come and be stored."""
    pictures = dict(hostile())
    table, listed = place / "hostile.parquet", place / "hostile-listed.parquet"
    write_files(place, table, pictures)
    for mode in ("center_crop", "border", "none"):
        prepared(f"hostile, {mode}", table, f"mode={mode}")
    prepared("hostile, none, a CLIP", table, "mode=none", clip="random:0")
    with serving(list(pictures.values())) as port:
        by_address(listed, port, len(pictures))
        prepared("hostile, none, fetched", listed, "mode=none", *_FETCH)


def write_files(place: Path, table: Path, pictures: dict[str, bytes]) -> None:
    """Each picture as a file, and a table with their names."""
    for name, data in pictures.items():
        (place / name).write_bytes(data)
    captions = [f"{name}, {len(data):,} bytes" for name, data in pictures.items()]
    pq.write_table(pa.table({"file": list(pictures), "caption": captions}), table)


def main() -> None:
    """Print peaks in megabytes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=4000, help="usual pictures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        columns = ("rows", "kept"), ("worker MB", "actor MB", "driver MB")
        print(" " * 24 + "".join(f"{name:>8}" for name in columns[0]), end="")
        print("".join(f"{name:>12}" for name in columns[1]))
        usual(Path(folder), options.count)
        all_hostile(Path(folder))


if __name__ == "__main__":
    main()
