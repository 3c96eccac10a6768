"""Bytes of a tar beyond its JPEGs, for each sample: img2dataset's and ours, of the same pictures.

`make peers`, then `python -m benchmarks.tar_overhead [--count N]`. Both tools fetch the same
addresses from the loopback interface and write tars of 250 samples at the same size and quality.
Overhead is everything but the JPEGs' own bytes: headers, padding, captions, json, the tar's end.
"""

from __future__ import annotations

import argparse
import tarfile
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.pictures import jpegs
from benchmarks.prepare_peers import ROOT, img2dataset, ours, seconds, write_addresses
from benchmarks.server import serving


@dataclass(frozen=True)
class Overhead:
    """Bytes a sample, by what they are."""

    samples: int
    pictures: float
    captions: float
    json: float
    rest: float  # headers, padding, the tar's end

    @property
    def total(self) -> float:
        """Bytes a sample that are not the picture's."""
        return self.captions + self.json + self.rest


def overhead(tars: Iterable[Path]) -> Overhead:
    """Adds up the members of some tars, and what lies between them."""
    sizes = {"jpg": 0, "txt": 0, "json": 0}
    samples = whole = 0
    for path in tars:
        whole += path.stat().st_size
        with tarfile.open(path) as tar:
            for member in tar:
                suffix = member.name.rpartition(".")[2]
                sizes[suffix] += member.size
                samples += suffix == "jpg"
    rest = whole - sum(sizes.values())
    parts = (sizes["jpg"], sizes["txt"], sizes["json"], rest)
    return Overhead(samples, *(part / samples for part in parts))


def main() -> None:
    """Print both and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--pictures", type=Path, default=None, help="a folder of photographs")
    parser.add_argument("--peers", type=Path, default=ROOT / ".venv-peers/bin")
    options = parser.parse_args()
    bodies = list(jpegs(options.count, photos=options.pictures))
    with tempfile.TemporaryDirectory() as folder, serving(bodies) as port:
        place = Path(folder)
        write_addresses(place / "list.parquet", options.count, port)
        theirs, here = place / "img2dataset", place / "unclip"
        seconds(img2dataset(options.peers, place / "list.parquet", theirs), place / "log")
        seconds(ours(place / "list.parquet", None, here), place / "log")
        found = {
            "img2dataset": overhead(sorted(theirs.glob("*.tar"))),
            "unclip": overhead(sorted((here / "shards").glob("*.tar"))),
        }
    print(
        f"{'bytes a sample':16}{'samples':>8}{'jpg':>9}{'txt':>7}{'json':>7}{'rest':>7}{'sum':>7}"
    )
    for tool, one in found.items():
        parts = f"{one.pictures:>9,.0f}{one.captions:>7,.0f}{one.json:>7,.0f}{one.rest:>7,.0f}"
        print(f"{tool:16}{one.samples:>8,}{parts}{one.total:>7,.0f}")
    print(f"ratio of the sums: {found['unclip'].total / found['img2dataset'].total:.2f}")


if __name__ == "__main__":
    main()
