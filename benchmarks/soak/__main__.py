"""Fuzzes all that meets bytes of strangers: `python -m benchmarks.soak [--minutes M]`."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

from benchmarks.soak.seeds import KINDS
from benchmarks.soak.watch import MEGABYTES, SECONDS, Tally, run

_VERSIONS = ("pillow", "simplejpeg", "opencv-python-headless", "numpy", "pyarrow", "aiohttp")


def report(tallies: Sequence[Tally], seed: int, minutes: float, command: str) -> str:
    """The page: what ran, with what, and what became of it."""
    failures = [line for tally in tallies for line in tally.failures]
    versions = ", ".join(f"{name} {version(name)}" for name in _VERSIONS)
    day = f"{datetime.now(timezone.utc):%Y-%m-%d}"
    cases = sum(tally.cases for tally in tallies)
    lines = [
        "# Soak",
        "",
        "Damaged files of every kind, made from a seed, go all the way to the JPEG that would be",
        "stored, or are scanned and read to their end as inputs. `tarheader` are tars whose",
        "checksums were mended after the damage, `jpegheader` headers that Pillow must read alike,",
        "`csvrows` and `jsonrows` lines before three sound ones, which must come out sound;",
        "`http` are a server's answers, from the status line on, that the client for pictures gets",
        "over loopback. A case fails when its process dies, when it raises what is no rejection,",
        f"when it takes more than {MEGABYTES} MB or {SECONDS:.0f} s. This page was written by",
        "",
        "```text",
        command,
        "```",
        "",
        f"on {day}, Python {platform.python_version()}, {versions};",
        f"seed {seed}, {minutes:g} minutes, {cases:,} cases, {len(failures)} failures.",
        "",
        "| kind | cases | outcomes | most memory | slowest |",
        "|---|---|---|---|---|",
    ]
    for tally in tallies:
        outcomes = ", ".join(f"{name} {count:,}" for name, count in tally.outcomes.most_common())
        lines.append(
            f"| {tally.kind} | {tally.cases:,} | {outcomes} | {tally.megabytes} MB "
            f"| {tally.seconds:.1f} s |"
        )
    return "\n".join([*lines, *([""] if failures else []), *(f"- {f}" for f in failures), ""])


def _evil() -> Path | None:
    """The odd pictures that lie beside a checkout, where they do."""
    folder = Path("../shared/data/evil")
    return folder if folder.is_dir() else None


def main() -> int:
    """Runs every kind for its share of the time; 1 when a case failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=12.0, help="of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=[*KINDS])
    parser.add_argument("--evil", type=Path, default=_evil(), help="a folder of odd pictures")
    parser.add_argument("--keep", type=Path, default=Path("runs/soak"), help="for what failed")
    parser.add_argument("--report", type=Path, default=None, help="write the page here")
    options = parser.parse_args()
    tallies = []
    for kind in options.kinds:
        share = 60 * options.minutes / len(options.kinds)
        tallies.append(run(kind, options.seed, share, options.keep, options.evil))
        last = tallies[-1]
        print(
            kind, f"{last.cases:,}", dict(last.outcomes.most_common()), *last.failures, flush=True
        )
    command = f"python -m benchmarks.soak --minutes {options.minutes:g} --seed {options.seed}"
    command += " --evil DIR" if options.evil else ""
    page = report(tallies, options.seed, options.minutes, command)
    print(page)
    if options.report:
        options.report.write_text(page, encoding="utf-8")
    return int(any(tally.failures for tally in tallies))


if __name__ == "__main__":
    sys.exit(main())
