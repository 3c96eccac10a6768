"""Addresses to shards with embeddings: img2dataset and clip-retrieval in a row, and ours.

`make peers`, then `python -m benchmarks.prepare_peers [--count N] [--clip nano small]`. JPEGs of
512² are served on the loopback interface by a process of its own, resized to 256² with a centre
crop at quality 95, and embedded by a CLIP with the same weights: in float32, ours in bfloat16 as
well. Every tool runs as the command that its users give, over a third of the addresses and over all
of them, in turns, after a first round that is not counted. The rate is the slope between the two
(medians), so that imports, Ray's start and the loading of models count for nobody; the totals count
them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.clips import CLIPS, rate_alone, write_clip
from benchmarks.pictures import caption, jpegs
from benchmarks.server import ceiling, serving
from benchmarks.slope import Slope, slope
from data_pipeline.schema.dataset import read_dataset

ROOT = Path(__file__).resolve().parent.parent
_SHARD = 250  # rows of a shard, for both: small enough that two cores end together
_THREADS = 32  # of each of img2dataset's two processes


def write_addresses(path: Path, count: int, port: int) -> None:
    """A parquet file of `url` and `caption`."""
    urls = [f"http://127.0.0.1:{port}/{index}.jpg" for index in range(count)]
    table = pa.table({"url": urls, "caption": [caption(index) for index in range(count)]})
    pq.write_table(table, path)


def img2dataset(peers: Path, addresses: Path, out: Path) -> list[str]:
    """Its command line, with two processes."""
    options = {
        "url_list": addresses,
        "input_format": "parquet",
        "url_col": "url",
        "caption_col": "caption",
        "output_folder": out,
        "output_format": "webdataset",
        "image_size": 256,
        "resize_mode": "center_crop",
        "encode_quality": 95,
        "processes_count": 2,
        "thread_count": _THREADS,
        "number_sample_per_shard": _SHARD,
        "enable_wandb": False,
    }
    return [str(peers / "img2dataset"), *(f"--{name}={value}" for name, value in options.items())]


def clip_retrieval(
    peers: Path, name: str, clip: Path, tars: Path, out: Path, count: int
) -> list[str]:
    """Its inference over the tars that img2dataset made."""
    last = -(-count // _SHARD) - 1
    every = f"{tars}/{{00000..{last:05d}}}.tar"
    script = ROOT / "benchmarks/peers/clip_inference.py"
    return [str(peers / "python"), str(script), f"bench-{name}", str(clip), every, str(out)]


def ours(addresses: Path, clip: Path | None, out: Path, *settings: str) -> list[str]:
    """The command of this repository; without a CLIP no embeddings."""
    command = [sys.executable, "-m", "data_pipeline", "prepare", str(addresses)]
    command += ["--out", str(out), "--clip", str(clip or "none")]
    for setting in (
        f"samples_per_shard={_SHARD}",
        "fetch.allow_private=true",
        f"fetch.per_host={_THREADS}",
        *settings,
    ):
        command += ["--set", setting]
    return command


def seconds(command: Sequence[str], log: Path) -> float:
    """How long a command takes from its start to its end.

    Raises:
        SystemExit: it failed; the end of what it said.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as file:
        begun = time.perf_counter()
        code = subprocess.run(command, stdout=file, stderr=file, env=environment).returncode
        took = time.perf_counter() - begun
    if code:
        raise SystemExit(f"{command[0]} ended with {code}: {log.read_text()[-2000:]}")
    return took


def one_round(
    peers: Path, name: str, clip: Path, addresses: Path, count: int, place: Path
) -> dict[str, float]:
    """Seconds of each tool over the same addresses; what they made is looked at and removed."""
    folder = Path(tempfile.mkdtemp(dir=place))
    parts = ("tars", "emb", "ours", "bf16", "log")
    tars, embedded, dataset, in_bf16, log = (folder / part for part in parts)
    took = {
        "img2dataset": seconds(img2dataset(peers, addresses, tars), log),
        "clip-retrieval": seconds(clip_retrieval(peers, name, clip, tars, embedded, count), log),
        "unclip": seconds(ours(addresses, clip, dataset), log),
        "unclip, bf16": seconds(ours(addresses, clip, in_bf16, "embed.precision=bf16"), log),
    }
    theirs = sum(pq.read_metadata(path).num_rows for path in embedded.glob("metadata/*.parquet"))
    kept = [read_dataset(made).kept for made in (dataset, in_bf16)]
    if [theirs, *kept] != [count] * 3:
        raise SystemExit(f"{count} pictures: they kept {theirs}, we kept {kept}")
    shutil.rmtree(folder)
    took["both in a row"] = took["img2dataset"] + took["clip-retrieval"]
    told = ", ".join(f"{tool} {time_:.1f} s" for tool, time_ in took.items())
    print(f"{name}, {count:,} pictures: {told}", file=sys.stderr, flush=True)
    return took


def table(name: str, alone: float, counts: tuple[int, int], taken: dict[str, Slope]) -> str:
    """Rates, start-up and totals, and rates against both of the others in a row."""
    small, large = counts
    lines = [
        f"{name} CLIP ({alone:,.0f} pairs/s alone); rates between {small:,} and {large:,} pictures",
        f"{'':16}{'pictures/s':>12}{'start s':>10}{'all s':>10}{'x both':>10}",
    ]
    for tool, line in taken.items():
        total = line.start + large / line.rate
        ratio = line.rate / taken["both in a row"].rate
        lines.append(f"{tool:16}{line.rate:>12,.0f}{line.start:>10.1f}{total:>10.1f}{ratio:>9.2f}x")
    return "\n".join(lines)


def main() -> None:
    """Print a table for each CLIP."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clip", nargs="+", choices=tuple(CLIPS), default=tuple(CLIPS))
    parser.add_argument("--pictures", type=Path, default=None, help="a folder of photographs")
    parser.add_argument("--peers", type=Path, default=ROOT / ".venv-peers/bin")
    options = parser.parse_args()
    counts = (options.count // 3, options.count)
    bodies = list(jpegs(options.count, photos=options.pictures))
    with tempfile.TemporaryDirectory() as folder, serving(bodies) as port:
        place = Path(folder)
        print(f"the server alone: {ceiling(port, len(bodies)):,.0f} pictures/s", flush=True)
        lists = [place / f"{count}.parquet" for count in counts]
        for path, count in zip(lists, counts, strict=True):
            write_addresses(path, count, port)
        for name in options.clip:
            clip = write_clip(name, place / name)
            alone = rate_alone(clip)
            one_round(options.peers, name, clip, lists[0], counts[0], place)  # files into memory
            seen: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
            for _ in range(options.repeats):
                for which, count in enumerate(counts):
                    took = one_round(options.peers, name, clip, lists[which], count, place)
                    for tool, time_ in took.items():
                        seen[tool][which].append(time_)
            taken = {tool: slope(*counts, *times) for tool, times in seen.items()}
            order = ("img2dataset", "clip-retrieval", "both in a row", "unclip", "unclip, bf16")
            print(table(name, alone, counts, {tool: taken[tool] for tool in order}), flush=True)


if __name__ == "__main__":
    main()
