"""Watches the processes that run the cases: deaths, memory, patience."""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from benchmarks.soak.cases import damaged
from benchmarks.soak.seeds import seeds

MEGABYTES = 1000  # for one case
SECONDS = 20.0  # for one case
_CASES = 2000  # of one process


@dataclass
class Tally:
    """What became of the cases of one kind."""

    kind: str
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    megabytes: int = 0  # of the hungriest case
    seconds: float = 0.0  # of the slowest

    @property
    def cases(self) -> int:
        """How many were run."""
        return self.outcomes.total()


def run(
    kind: str, seed: int, seconds: float, keep: Path, evil: Path | None = None, most: int = 10**9
) -> Tally:
    """Cases of one kind for so many seconds, or `most` of them; what failed lies in `keep`."""
    tally, number, until = Tally(kind), 0, time.monotonic() + seconds
    while time.monotonic() < until and number < most:
        count = min(_CASES, most - number)
        number = _one_process(tally, seed, number, count, until, keep, evil)
    return tally


def _one_process(
    tally: Tally, seed: int, first: int, count: int, until: float, keep: Path, evil: Path | None
) -> int:
    """Runs cases in one process until it ends; the number of the next case."""
    command = [sys.executable, "-m", "benchmarks.soak.child", tally.kind, str(seed), str(first)]
    command += [str(count), *([str(evil)] if evil else [])]
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        under_way, following, why = None, first, None
        try:
            for line in _lines(child):
                if line is None:
                    why = f"more than {SECONDS:.0f} s" if under_way is not None else None
                    break
                mark, *words = line.split()
                if mark == ">":
                    under_way = int(words[0])
                    continue
                following, under_way = int(words[0]) + 1, None
                _count(tally, seed, words, keep, evil, errors)
                if time.monotonic() > until:
                    break
            else:
                code = child.wait()
                if under_way is None and code:
                    raise RuntimeError(f"the child ended with {code}: {_tail(errors)}")
                why = f"ended with {code}: {_tail(errors)}"
        finally:
            child.kill()
            child.wait()
        if under_way is not None and why is not None:
            tally.outcomes["died"] += 1
            _keep(tally, seed, under_way, why, keep, evil)
            following = under_way + 1
    return following


def _lines(child: subprocess.Popen[bytes]) -> Iterator[str | None]:
    """The child's lines as they come; None when none comes for too long, and then no more."""
    assert child.stdout is not None
    descriptor, rest = child.stdout.fileno(), b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        patience = 3 * SECONDS  # its start
        while True:
            if not selector.select(patience):
                yield None
                return
            patience = SECONDS
            data = os.read(descriptor, 1 << 16)
            if not data:
                return
            *whole, rest = (rest + data).split(b"\n")
            yield from (line.decode() for line in whole)


def _count(
    tally: Tally, seed: int, words: list[str], keep: Path, evil: Path | None, errors: IO[bytes]
) -> None:
    number, result, seconds, megabytes = int(words[0]), words[1], float(words[2]), int(words[3])
    tally.outcomes[result] += 1
    tally.seconds = max(tally.seconds, seconds)
    tally.megabytes = max(tally.megabytes, megabytes)
    if result == "error":
        _keep(tally, seed, number, f"raised: {_tail(errors)}", keep, evil)
    elif megabytes > MEGABYTES:
        _keep(tally, seed, number, f"took {megabytes} MB", keep, evil)


def _keep(tally: Tally, seed: int, number: int, why: str, keep: Path, evil: Path | None) -> None:
    keep.mkdir(parents=True, exist_ok=True)
    path = keep / f"{tally.kind}-{seed}-{number}"
    path.write_bytes(damaged(tally.kind, seeds(tally.kind, evil), seed, number))
    tally.failures.append(f"{tally.kind} case {number} of seed {seed}: {why} ({path})")


def _tail(errors: IO[bytes]) -> str:
    told = os.pread(errors.fileno(), 4000, max(0, os.fstat(errors.fileno()).st_size - 4000))
    return " | ".join(told.decode("utf-8", "replace").splitlines()[-3:])[:400]
