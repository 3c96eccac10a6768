"""The driver's memory and time: planning N rows, and running all of their shards.

`python -m benchmarks.plan [--rows 10000 100000 1000000]`. The plan is made from parquet, csv and
packed json lines with an address and a caption in each row. The runs prepare rows that are
rejected at once (no caption), so that workers have nothing to do and the driver goes through all
of its bookkeeping: tasks, commits, totals. Every measurement is a process of its own; the peak is
of resident memory.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import pyarrow as pa
import pyarrow.parquet as pq

ROWS = (10_000, 100_000, 1_000_000)
_BLOCK = 10_000


def _rows(count: int, words: bool) -> Iterator[tuple[str, str]]:
    for index in range(count):
        yield (
            f"https://images.example.org/{index % 997}/a-rather-long-path/{index:09d}.jpg",
            f"a caption of usual length for the picture with number {index}" if words else "",
        )


def write_table(path: Path, count: int, words: bool = True) -> None:
    """A table of `url` and `caption`, of the kind that its name says."""
    if path.suffix == ".parquet":
        _parquet(path, count, words)
    elif path.suffix == ".csv":
        with path.open("w") as file:
            _csv(file, count, words)
    else:
        with gzip.open(path, "wt", compresslevel=1) as file:
            for url, caption in _rows(count, words):
                file.write(json.dumps({"url": url, "caption": caption}) + "\n")


def _csv(file: TextIO, count: int, words: bool) -> None:
    file.write("url,caption\n")
    file.writelines(f"{url},{caption}\n" for url, caption in _rows(count, words))


def _parquet(path: Path, count: int, words: bool) -> None:
    schema = pa.schema([("url", pa.string()), ("caption", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        block: list[tuple[str, str]] = []
        for row in _rows(count, words):
            block.append(row)
            if len(block) == _BLOCK:
                urls, captions = zip(*block, strict=True)
                writer.write_table(pa.table({"url": urls, "caption": captions}, schema=schema))
                block.clear()
        if block:
            urls, captions = zip(*block, strict=True)
            writer.write_table(pa.table({"url": urls, "caption": captions}, schema=schema))


def plan(table: Path, out: Path) -> float:
    """Seconds for scanning a table and persisting its plan."""
    from data_pipeline import sources
    from data_pipeline.config import PrepareConfig
    from data_pipeline.plan import persist

    config = PrepareConfig()
    begun = time.perf_counter()
    persist(out, sources.scan([table], out / ".work", config.columns), config)
    return time.perf_counter() - begun


def prepare(table: Path, out: Path) -> float:
    """Seconds for a run of which nothing is kept: the driver's part of it."""
    from base.errors import NothingUsable
    from data_pipeline.pipeline import prepare as run

    begun = time.perf_counter()
    try:
        run([table], out)
    except NothingUsable:
        return time.perf_counter() - begun
    raise AssertionError("rows without captions were kept")


def _peak_of(status: str) -> int:
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


def measured(call: Callable[[Path, Path], float], table: Path, out: Path) -> tuple[float, int]:
    """Seconds that `call` says, and the peak of its process in megabytes."""
    command = [sys.executable, "-m", "benchmarks.plan", "--call", call.__name__, table, out]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds, peak = done.stdout.split()[-2:]
    return float(seconds), int(peak)


def main() -> None:
    """Print both tables."""
    if sys.argv[1:2] == ["--call"]:
        call = {"plan": plan, "prepare": prepare}[sys.argv[2]]
        seconds = call(Path(sys.argv[3]), Path(sys.argv[4]))
        print(seconds, _peak_of(Path("/proc/self/status").read_text()))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--largest-run", type=int, default=1_000_000, help="plan more, run less")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        print(f"{'':24}{'rows':>12}{'seconds':>10}{'peak MB':>10}")
        for suffix in (".parquet", ".csv", ".jsonl.gz"):
            for count in options.rows:
                table = place / f"{count}{suffix}"
                write_table(table, count)
                seconds, peak = measured(plan, table, place / f"plan-{count}{suffix}")
                print(f"{'plan ' + suffix:24}{count:>12,}{seconds:>10.1f}{peak:>10,}", flush=True)
                table.unlink()
        for count in (rows for rows in options.rows if rows <= options.largest_run):
            table = place / f"{count}.parquet"
            write_table(table, count, words=False)
            seconds, peak = measured(prepare, table, place / f"run-{count}")
            print(f"{'plan and run':24}{count:>12,}{seconds:>10.1f}{peak:>10,}", flush=True)


if __name__ == "__main__":
    main()
