"""Local pictures to shards without CLIP, against the floor: decode, resize and encode alone.

`python -m benchmarks.pixels [--count N] [--pictures DIR] [--profile]`. Both run in the same
processes, one after the other, over the same JPEGs of 512²: the floor from memory, ours from a
parquet file with the bytes in a column to committed bytes of tar and tables on the disk. Ray is
left out: it costs per shard, not per picture.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg

from benchmarks.clock import Clock
from benchmarks.pictures import caption, jpegs
from data_pipeline import columns, pixels, resize, sources
from data_pipeline.attempts import attempt_at
from data_pipeline.config import PrepareConfig
from data_pipeline.pixels import Job, make_shard
from data_pipeline.plan import Slice, cut
from data_pipeline.shards import TarWriter

_SIZE = 256
_QUALITY = 95
_PROCESSES = (1, 2)


def write_table(path: Path, count: int, photos: Path | None) -> None:
    """A parquet file of JPEGs with captions, in row groups of 100."""
    schema = pa.schema([("key", pa.string()), ("caption", pa.string()), ("jpg", pa.binary())])
    with pq.ParquetWriter(path, schema) as writer:
        rows = [
            {"key": f"{index:08d}", "caption": caption(index), "jpg": data}
            for index, data in enumerate(jpegs(count, photos=photos))
        ]
        writer.write_table(pa.Table.from_pylist(rows, schema=schema), row_group_size=100)


@dataclass(frozen=True)
class Took:
    """Seconds by the clock on the wall, and of the processor, which other programs cannot slow."""

    wall: float
    processor: float


class Stopwatch:
    """Begins when it is made."""

    def __init__(self) -> None:
        self._wall, self._processor = time.perf_counter(), time.process_time()

    def took(self) -> Took:
        """Since it was made."""
        return Took(time.perf_counter() - self._wall, time.process_time() - self._processor)


def floor(table: Path, first: int, count: int) -> Took:
    """The time for DCT-scaled decode, area resize and encode of JPEGs that lie in memory."""
    cv2.setNumThreads(0)
    data = pq.read_table(table, columns=["jpg"]).slice(first, count)["jpg"].to_pylist()
    watch = Stopwatch()
    for jpeg in data:
        pixels = simplejpeg.decode_jpeg(
            jpeg, "RGB", min_height=_SIZE, min_width=_SIZE, min_factor=2
        )
        small = cv2.resize(pixels, (_SIZE, _SIZE), interpolation=cv2.INTER_AREA)
        simplejpeg.encode_jpeg(small, _QUALITY, "RGB", "420")
    return watch.took()


def ours(table: Path, first: int, count: int, shard_rows: int = 1000) -> Took:
    """The time for shards of these rows: as stored bytes, read from the table."""
    config = PrepareConfig(image_size=_SIZE, jpeg_quality=_QUALITY, samples_per_shard=shard_rows)
    with tempfile.TemporaryDirectory(dir=table.parent) as folder:
        work = Path(folder)
        found = sources.scan([table], work, config.columns)
        extra = columns.union([source.extra for source in found])
        plans = [
            plan
            for plan in cut([source.rows for source in found], shard_rows)
            if first <= plan.first_row < first + count
        ]
        few = replace(plans[0], slices=(Slice(0, first, 2),))  # imports are start-up
        with attempt_at(work, 99_999) as (place, _):
            make_shard(Job(few, tuple(found), extra, config), place)
        watch = Stopwatch()
        for plan in plans:
            with attempt_at(work, plan.shard) as (place, _):
                make_shard(Job(plan, tuple(found), extra, config), place)
        return watch.took()


def rate(
    run: Callable[[Path, int, int], Took], table: Path, count: int, processes: int
) -> tuple[float, float]:
    """Pictures a second of `processes` at once, each with its share of the rows; and if the
    processor were theirs alone.
    """
    share = count // processes
    with ProcessPoolExecutor(processes) as pool:
        list(pool.map(_warm, range(processes)))
        calls = [pool.submit(run, table, share * i, share) for i in range(processes)]
        took = [call.result() for call in calls]
    return sum(share / t.wall for t in took), sum(share / t.processor for t in took)


def _warm(_: int) -> None:
    time.sleep(0.2)  # so that every process of the pool is there


def compare(table: Path, count: int, processes: int, repeats: int) -> list[float]:
    """Median rates of floor and ours, then those by the processor's time; taken in turns."""
    seen: list[tuple[float, float, float, float]] = []
    for _ in range(repeats):
        base, base_cpu = rate(floor, table, count, processes)
        here, here_cpu = rate(ours, table, count, processes)
        seen.append((base, here, base_cpu, here_cpu))
    return [statistics.median(column) for column in zip(*seen, strict=True)]


def parts(table: Path, count: int) -> list[tuple[str, float]]:
    """The processor's milliseconds a picture for each part of `ours`, without parts inside it."""
    clock = Clock()
    clock.watch("decode: header and orientation", pixels, "decode")
    clock.watch("resize", resize, "fit")
    clock.watch("encode", simplejpeg, "encode_jpeg")
    clock.watch("phash", pixels, "phash")
    clock.watch("sha256", hashlib, "sha256")
    clock.watch("json", columns, "json_text")
    clock.watch("tar", TarWriter, "add")
    clock.watch("parquet", pixels, "write_parquet")
    clock.watch("columns", pixels, "_metadata")
    clock.watch("rows of tar and tables", pixels, "_add")
    clock.watch("captions", pixels, "with_caption")
    decode_jpeg = clock.timed("decode: DCT-scaled", simplejpeg.decode_jpeg)
    stored = clock.timed("decode: stored JPEG", simplejpeg.decode_jpeg)

    def either(data: bytes, space: str = "RGB", **options: Any) -> Any:
        return (decode_jpeg if options else stored)(data, space, **options)

    clock.replace(simplejpeg, "decode_jpeg", either)
    read = sources.read

    def timed_read(*arguments: Any) -> Iterator[Any]:
        rows = read(*arguments)
        take = clock.timed("read", lambda: next(rows, None))
        return iter(take, None)

    clock.replace(sources, "read", timed_read)
    with clock:
        whole = ours(table, 0, count)
    found = [(name, 1e3 * seconds / count) for name, seconds in clock.seconds.items()]
    rest = 1e3 * whole.processor / count - sum(milliseconds for _, milliseconds in found)
    return [*sorted(found, key=lambda item: -item[1]), ("everything else", rest)]


def main() -> None:
    """Print both rates and how much longer ours takes; with --profile, where the time goes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=4000, help="pictures, in thousands")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pictures", type=Path, default=None, help="a folder of photographs")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "pictures.parquet"
        write_table(table, options.count, options.pictures)
        if options.profile:
            for name, milliseconds in parts(table, options.count):
                print(f"{milliseconds:8.3f} ms  {name}")
            return
        print(f"{'processes':>9}{'floor /s':>12}{'ours /s':>12}{'time / floor':>14}{'by CPU':>10}")
        for processes in _PROCESSES:
            base, here, base_cpu, here_cpu = compare(
                table, options.count, processes, options.repeats
            )
            times = f"{base / here:>14.2f}{base_cpu / here_cpu:>10.2f}"
            print(f"{processes:>9}{base:>12,.0f}{here:>12,.0f}{times}", flush=True)


if __name__ == "__main__":
    main()
