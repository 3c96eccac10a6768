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
    yield from _sizes(a)
    yield from _pace(a)
    yield from _storage(a)
    yield from _machines(a)
    yield from _money(a)


def _sizes(a: Assumptions) -> Iterator[Line]:
    shards = _shards(a)
    parts = math.ceil(shards / MAX_SHARDS)
    yield Line("kept", f"{_kept(a):.2e}", "rows x success")
    yield Line("shards", f"{shards:,}", f"at most {KEYS_PER_SHARD:,} rows each")
    yield Line("DATASETs", f"{parts}", f"OUT-000 … OUT-{parts - 1:03d}, {MAX_SHARDS:,} shards each")
    yield Line("a tar", f"{_tar_bytes(a) / 1e6:,.0f} MB", "what is kept of a shard")


def _kept(a: Assumptions) -> float:
    return a.rows * a.success


def _shards(a: Assumptions) -> int:
    return math.ceil(a.rows / a.rows_per_shard)


def _tar_bytes(a: Assumptions) -> float:
    """Of one shard."""
    return a.rows_per_shard * a.success * (a.stored_bytes + a.overhead_bytes)


def _pace(a: Assumptions) -> Iterator[Line]:
    rates = _rates(a)
    limit, rate = _slowest(a)
    requests = rate * a.attempts
    under, lookups = requests * a.latency, requests * a.misses
    days = a.rows / rate / _DAY
    down = _download_bytes(a) / 1e12
    yield Line("download", f"{down:,.0f} TB", "ingress; free where clouds do not count it")
    yield Line("addresses/s, cores", f"{rates['cores']:,.0f}", "nodes x cores x per_core")
    yield Line("addresses/s, network", f"{rates['network']:,.0f}", "nodes x gigabits / mean bytes")
    host = rates["largest host"]
    yield Line("addresses/s, one host", f"{host:,.0f}", "host_rate / attempts / largest_host")
    yield Line("days", f"{days:,.1f}", f"the least of the three: {limit}")
    yield Line("requests/s", f"{requests:,.0f}", "addresses/s x attempts")
    yield Line("requests under way", f"{under:,.0f}", "requests/s x latency")
    of_a_core = f"{under / a.nodes / a.cores:,.0f}"
    yield Line("… of a core", of_a_core, "fetch.concurrency is 256 a task")
    yield Line("DNS lookups/s", f"{lookups:,.0f}", "a caching resolver on every node")
    yield Line("… of a node", f"{lookups / a.nodes:,.0f}", "a public resolver stops at 20 to 1,500")


def _rates(a: Assumptions) -> dict[str, float]:
    """Addresses a second that each of the narrow places lets through."""
    return {
        "cores": a.nodes * a.cores * a.per_core,
        "network": a.nodes * a.gigabits * 1e9 / 8 / (_download_bytes(a) / a.rows),
        "largest host": a.host_rate / a.attempts / a.largest_host,
    }


def _slowest(a: Assumptions) -> tuple[str, float]:
    """The narrowest place and its rate."""
    return min(_rates(a).items(), key=lambda item: item[1])


def _download_bytes(a: Assumptions) -> float:
    return _kept(a) * a.source_bytes + a.rows * (1 - a.success) * a.failed_bytes


def _storage(a: Assumptions) -> Iterator[Line]:
    stored = _stored(a)
    pictures = _kept(a) * a.stored_bytes
    yield Line("pictures", f"{pictures / 1e12:,.0f} TB", "kept x stored_bytes")
    yield Line("tars", f"{stored['tars'] / 1e12:,.0f} TB", "and their overhead")
    yield Line("embeddings", f"{stored['embeddings'] / 1e12:,.1f} TB", "two of dim float16")
    yield Line("tables", f"{stored['tables'] / 1e12:,.1f} TB", "metadata and rejected")
    yield Line("all", f"{sum(stored.values()) / 1e12:,.0f} TB", "")
    yield Line("PUTs", f"{_puts(a):,}", "5 small files and a multipart tar, a shard")


def _stored(a: Assumptions) -> dict[str, float]:
    """Bytes of what a finished DATASET holds."""
    return {
        "tars": _kept(a) * (a.stored_bytes + a.overhead_bytes),
        "embeddings": _kept(a) * 2 * a.dim * 2,
        "tables": a.rows * a.table_bytes,
    }


def _puts(a: Assumptions) -> int:
    return _shards(a) * (5 + 2 + math.ceil(_tar_bytes(a) / a.part_bytes))


def _machines(a: Assumptions) -> Iterator[Line]:
    gpu_hours = _gpu_hours(a)
    driver = 230e6 + min(_shards(a), MAX_SHARDS) * a.driver_bytes
    yield Line("core hours", f"{_core_hours(a):,.0f}", "all cores for all days")
    yield Line("A100 hours, L/14", f"{gpu_hours:,.0f}", "kept / a100_rate")
    yield Line("… days", f"{gpu_hours / 24 / a.gpus:,.1f}", "over gpus; as many as the days above")
    yield Line("driver", f"{driver / 1e9:,.1f} GB", "a DATASET at a time")


def _core_hours(a: Assumptions) -> float:
    return a.rows / _slowest(a)[1] / 3600 * a.nodes * a.cores


def _gpu_hours(a: Assumptions) -> float:
    return _kept(a) / a.a100_rate / 3600


def _money(a: Assumptions) -> Iterator[Line]:
    gigabytes = sum(_stored(a).values()) / 1e9
    for name, dollars, how in (
        ("cores, $", _core_hours(a) * a.core_dollars, "core hours"),
        ("GPUs, $", _gpu_hours(a) * a.gpu_dollars, "A100 hours"),
        ("PUTs, $", _puts(a) * a.put_dollars, ""),
        ("storage, $ a month", gigabytes * a.month_dollars, ""),
        ("one reading elsewhere, $", gigabytes * a.egress_dollars, "egress; none inside"),
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
