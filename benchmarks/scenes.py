"""Scenes a second that the corpus writer makes: `python -m benchmarks.scenes [--count N]`."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from data_pipeline.scenes import Form, write_scenes

FORMS: tuple[Form, ...] = ("folder", "parquet", "webdataset")


def main() -> None:
    """Print one line a form: scenes a second from an empty folder to a whole corpus."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--workers", type=int, default=None, help="default: one a core")
    options = parser.parse_args()
    for form in FORMS:
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            out = Path(folder) / "scenes"
            write_scenes(out, options.count, 0, form, "train", options.size, options.workers)
            seconds = time.perf_counter() - begin
        print(f"{form:<10} {options.count / seconds:7,.0f} scenes/s at {options.size} pixels")


if __name__ == "__main__":
    main()
