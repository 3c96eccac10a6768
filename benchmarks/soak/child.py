"""The process that may die: `python -m benchmarks.soak.child KIND SEED FIRST COUNT [EVIL]`.

Says on standard output which case begins (`> NUMBER`) and how it ended
(`< NUMBER OUTCOME SECONDS MEGABYTES`), so that whoever started it knows what killed it.
"""

from __future__ import annotations

import faulthandler
import resource
import sys
import tempfile
import time
import traceback
from pathlib import Path

from benchmarks.soak.cases import damaged, outcome
from benchmarks.soak.seeds import seeds

ADDRESSES = 16 << 30  # of address space: what asks for more is told no, and other programs live


def main() -> None:
    """Runs the cases; one that raises what it should not ends as `error`."""
    kind, seed, first, count = sys.argv[1], *map(int, sys.argv[2:5])
    evil = Path(sys.argv[5]) if len(sys.argv) > 5 else None
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    whole = seeds(kind, evil)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(first, first + count):
            data = damaged(kind, whole, seed, number)
            print(">", number, flush=True)
            before = _begin_peak()
            begun = time.perf_counter()
            try:
                result = outcome(kind, data, number, Path(folder))
            except Exception:
                traceback.print_exc()
                result = "error"
            seconds = time.perf_counter() - begun
            print("<", number, result, f"{seconds:.3f}", peak() - before, flush=True)


def _begin_peak() -> int:
    """Begins a new peak of resident memory; megabytes now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    """Megabytes of resident memory at the most, since the last beginning."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


if __name__ == "__main__":
    main()
