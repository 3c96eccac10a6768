"""What 5·10⁹ addresses would take, on paper: `python -m benchmarks.laion_scale`.

Prints the assumptions, each with where it comes from, and what follows; `--set NAME=VALUE` changes
one of them.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace

from data_pipeline.schema.dataset import KEYS_PER_SHARD, MAX_SHARDS

_DAY = 86_400.0


def _said(value: float, why: str) -> float:
    """A field with its default and where that comes from."""
    made: float = field(default=value, metadata={"why": why})
    return made


@dataclass(frozen=True)
class Assumptions:
    """What is taken for granted."""

    rows: float = _said(5e9, "addresses of LAION-5B")
    rows_per_shard: float = _said(10_000, "the most that a KEY can number; the default is 1,000")
    success: float = _said(0.7, "share of addresses that still give a picture; assumed")
    attempts: float = _said(1.4, "requests an address, retries and redirects included; assumed")
    source_bytes: float = _said(150e3, "of a downloaded picture, mean; assumed")
    failed_bytes: float = _said(2e3, "of an answer that is no picture; assumed")
    stored_bytes: float = _said(37e3, "256² JPEG at quality 95: benchmarks.tar_overhead")
    overhead_bytes: float = _said(2.8e3, "headers, padding, text, json: benchmarks.tar_overhead")
    table_bytes: float = _said(400, "of metadata or rejected, a row, compressed; assumed")
    dim: float = _said(768, "of ViT-L/14's embeddings, float16, picture and caption")
    per_core: float = _said(81, "addresses/s: LAION-400M's 1,300 on 16 cores, published")
    cores: float = _said(32, "of a node")
    nodes: float = _said(10, "of the Ray cluster")
    gigabits: float = _said(10, "a second of network that a node really gets; assumed")
    a100_rate: float = _said(312, "pairs/s of L/14 on one A100: clip-retrieval's 2,500 on eight")
    gpus: float = _said(64, "A100 beside the nodes")
    largest_host: float = _said(0.02, "share of addresses on one host; assumed")
    host_rate: float = _said(1000, "requests/s that this host bears; assumed, of a CDN")
    misses: float = _said(0.25, "DNS lookups a request that no cache answers; assumed")
    latency: float = _said(1.5, "seconds of a request, mean with its time-outs; assumed")
    part_bytes: float = _said(64e6, "of a multipart upload's part; assumed")
    put_dollars: float = _said(5e-6, "a PUT; list price of S3, us-east")
    month_dollars: float = _said(0.023, "a GB and month of storage; list price of S3")
    egress_dollars: float = _said(0.05, "a GB out of the cloud; list price at this volume")
    core_dollars: float = _said(0.04, "a core and hour; assumed, on demand")
    gpu_dollars: float = _said(2.0, "an A100 and hour; assumed")
    driver_bytes: float = _said(7e3, "of the driver, a shard: benchmarks.plan")


@dataclass(frozen=True)
class Line:
    """A quantity that follows."""

    name: str
    value: str
    how: str


def lines(a: Assumptions) -> Iterator[Line]:
    """All quantities, in the order of the page."""
    kept = a.rows * a.success
    shards = math.ceil(a.rows / a.rows_per_shard)
    parts = math.ceil(shards / MAX_SHARDS)
    yield Line("kept", f"{kept:.2e}", "rows x success")
    yield Line("shards", f"{shards:,}", f"at most {KEYS_PER_SHARD:,} rows each")
    yield Line("DATASETs", f"{parts}", f"OUT-000 … OUT-{parts - 1:03d}, {MAX_SHARDS:,} shards each")
    tar = a.rows_per_shard * a.success * (a.stored_bytes + a.overhead_bytes)
    yield Line("a tar", f"{tar / 1e6:,.0f} MB", "what is kept of a shard")

    down = kept * a.source_bytes + a.rows * (1 - a.success) * a.failed_bytes
    by_cpu = a.nodes * a.cores * a.per_core
    by_net = a.nodes * a.gigabits * 1e9 / 8 / (down / a.rows)
    by_host = a.host_rate / a.attempts / a.largest_host
    rates = {"cores": by_cpu, "network": by_net, "largest host": by_host}
    limit = min(rates, key=lambda name: rates[name])
    rate = rates[limit]  # addresses a second
    days = a.rows / rate / _DAY
    yield Line("download", f"{down / 1e12:,.0f} TB", "ingress; free where clouds do not count it")
    yield Line("addresses/s, cores", f"{by_cpu:,.0f}", "nodes x cores x per_core")
    yield Line("addresses/s, network", f"{by_net:,.0f}", "nodes x gigabits / mean bytes")
    yield Line("addresses/s, one host", f"{by_host:,.0f}", "host_rate / attempts / largest_host")
    yield Line("days", f"{days:,.1f}", f"the least of the three: {limit}")
    yield Line("requests/s", f"{rate * a.attempts:,.0f}", "addresses/s x attempts")
    under = rate * a.attempts * a.latency
    yield Line("requests under way", f"{under:,.0f}", "requests/s x latency")
    yield Line(
        "… of a core", f"{under / a.nodes / a.cores:,.0f}", "fetch.concurrency is 256 a task"
    )
    lookups = rate * a.attempts * a.misses
    yield Line("DNS lookups/s", f"{lookups:,.0f}", "a caching resolver on every node")
    yield Line("… of a node", f"{lookups / a.nodes:,.0f}", "a public resolver stops at 20 to 1,500")

    pictures = kept * a.stored_bytes
    tars = pictures + kept * a.overhead_bytes
    embeddings = kept * 2 * a.dim * 2
    tables = a.rows * a.table_bytes
    whole = tars + embeddings + tables
    yield Line("pictures", f"{pictures / 1e12:,.0f} TB", "kept x stored_bytes")
    yield Line("tars", f"{tars / 1e12:,.0f} TB", "and their overhead")
    yield Line("embeddings", f"{embeddings / 1e12:,.1f} TB", "two of dim float16")
    yield Line("tables", f"{tables / 1e12:,.1f} TB", "metadata and rejected")
    yield Line("all", f"{whole / 1e12:,.0f} TB", "")
    puts = shards * (5 + 2 + math.ceil(tar / a.part_bytes))
    yield Line("PUTs", f"{puts:,}", "5 small files and a multipart tar, a shard")

    core_hours = a.rows / rate / 3600 * a.nodes * a.cores
    gpu_hours = kept / a.a100_rate / 3600
    yield Line("core hours", f"{core_hours:,.0f}", "all cores for all days")
    yield Line("A100 hours, L/14", f"{gpu_hours:,.0f}", "kept / a100_rate")
    yield Line("… days", f"{gpu_hours / 24 / a.gpus:,.1f}", "over gpus; as many as the days above")
    per_dataset = min(shards, MAX_SHARDS)
    driver = 230e6 + per_dataset * a.driver_bytes
    yield Line("driver", f"{driver / 1e9:,.1f} GB", "a DATASET at a time")

    for name, dollars, how in (
        ("cores, $", core_hours * a.core_dollars, "core hours"),
        ("GPUs, $", gpu_hours * a.gpu_dollars, "A100 hours"),
        ("PUTs, $", puts * a.put_dollars, ""),
        ("storage, $ a month", whole / 1e9 * a.month_dollars, ""),
        ("one reading elsewhere, $", whole / 1e9 * a.egress_dollars, "egress; none inside"),
    ):
        yield Line(name, f"{dollars:,.0f}", how)


def with_settings(settings: list[str]) -> Assumptions:
    """The assumptions with some changed: NAME=VALUE each.

    Raises:
        SystemExit: no such name, or no number.
    """
    known = {item.name for item in fields(Assumptions)}
    changed: dict[str, float] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in known:
            raise SystemExit(f"--set: got {name!r}, expected one of {', '.join(sorted(known))}")
        try:
            changed[name] = float(value)
        except ValueError:
            raise SystemExit(f"--set {name}: got {value!r}, expected a number") from None
    return replace(Assumptions(), **changed)


def main() -> None:
    """Print both tables as markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    assumed = with_settings(parser.parse_args().set)
    print("| assumption | value | from |\n|---|---|---|")
    for item in fields(assumed):
        print(f"| `{item.name}` | {getattr(assumed, item.name):,g} | {item.metadata['why']} |")
    print("\n| what follows | value | how |\n|---|---|---|")
    for line in lines(assumed):
        print(f"| {line.name} | {line.value} | {line.how} |")


if __name__ == "__main__":
    main()
