"""Peak memory of workers over usual and hostile pictures: `python -m benchmarks.worker_memory`.

Usual: shards of 1,000 JPEGs of 512² from a parquet file with their bytes. Hostile: pictures of as
many pixels as the caps allow, in every format, some of them a few kilobytes as a file; and files
that declare more. The peak is of resident memory of the worker that took most, everything in it.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.pixels import write_table
from data_pipeline.schema.dataset import read_dataset

_SIDE = 7_990  # 63.8 megapixels, below the cap of 64
_HEAVY_SIDE = 5_650  # of formats whose cap is half of it
_POLL = 0.1


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


def peak_of_workers(command: list[str]) -> tuple[int, int]:
    """Runs a command; megabytes of its hungriest Ray worker and of the command itself, at most."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    worker = driver = 0
    while process.poll() is None:
        driver = max(driver, _peak(process.pid))
        for pid in _below(process.pid):
            worker = max(worker, _peak(pid))
        time.sleep(_POLL)
    if process.returncode:
        assert process.stderr is not None
        raise SystemExit(process.stderr.read().decode()[-1000:])
    return worker, driver


def _below(pid: int) -> Iterator[int]:
    """Ray's workers among the processes that this one started, and those that they started."""
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
            yield child
        yield from _below(child)


def _peak(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(found[0].split()[1]) // 1024 if found else 0


def prepared(table: Path, out: Path, *settings: str) -> str:
    """A line of what a run over a table took."""
    command = [sys.executable, "-m", "data_pipeline", "prepare", str(table), "--out", str(out)]
    worker, driver = peak_of_workers([*command, *(w for s in settings for w in ("--set", s))])
    info = read_dataset(out)
    return f"{info.input:>8,}{info.kept:>8,}{worker:>12,}{driver:>12,}"


def main() -> None:
    """Print peaks in megabytes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=4000, help="usual pictures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        print(f"{'':16}{'rows':>8}{'kept':>8}{'worker MB':>12}{'driver MB':>12}")
        write_table(place / "usual.parquet", options.count, None)
        print(f"{'usual':16}{prepared(place / 'usual.parquet', place / 'usual')}", flush=True)
        names, captions = [], []
        for name, data in hostile():
            (place / name).write_bytes(data)
            names.append(name)
            captions.append(f"{name}, {len(data):,} bytes")
        pq.write_table(pa.table({"file": names, "caption": captions}), place / "hostile.parquet")
        for mode in ("center_crop", "border"):
            line = prepared(place / "hostile.parquet", place / mode, f"mode={mode}")
            print(f"{'hostile, ' + mode[:7]:16}{line}", flush=True)


if __name__ == "__main__":
    main()
