"""Trains the same run twice, in peace and under faults: `python -m benchmarks.training_soak`.

Two ranks, DeepSpeed ZeRO 1 over gloo, the prior of configs/micro on what `unclip demo` made. The
same command is given again and again, whatever happened to it, until it says that it is done.
Then the loss curve and every byte of the last checkpoint's tensors must be those of the quiet run.
"""

from __future__ import annotations

import argparse
import platform
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import psutil

from base.files import read_json, sha256_file, write_atomic, write_json
from benchmarks.training_soak.faults import BETWEEN, RUNNING
from trainer.metrics import OF_THE_MACHINE, read_metrics

ROOT = Path(__file__).resolve().parents[2]
_SAVES = 160  # checkpoints of a run


class Fault(NamedTuple):
    """One fault and when it came."""

    second: float
    kind: str
    what: str


def command(data: Path, out: Path, samples: int) -> list[str]:
    """The training of two ranks."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    settings = {
        "out": out,
        "data.paths": f"[{data / 'data' / 'train'}]",
        "clip": data / "clip",
        "train.samples": samples,
        "train.checkpoint_every": max(samples // _SAVES // 32, 1) * 32,
        "train.log_every": 320,
        "train.keep": 3,
        "train.workers": 1,
        "train.threads": 1,
        "train.zero_stage": 1,
    }
    chosen = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    config = str(ROOT / "configs" / "micro" / "prior.yaml")
    return [*launch, "-m", "trainer", "train", config, *chosen]


def quiet(data: Path, out: Path, samples: int, log: Path, most: float) -> float:
    """Train undisturbed, for at most so many minutes; the seconds that it took.

    Raises:
        SystemExit: it failed.
    """
    begun = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(command(data, out, samples), cwd=ROOT, stdout=file, stderr=file)
        try:
            code = process.wait(60 * most)
        except subprocess.TimeoutExpired:
            give_up(process, most, log)
    if code:
        raise SystemExit(f"the quiet run ended with {code}; see {log}")
    return time.monotonic() - begun


def give_up(process: subprocess.Popen[bytes], most: float, log: Path) -> NoReturn:
    """End a run that takes too long, and all of it."""
    with suppress(psutil.NoSuchProcess):  # it has ended
        launcher = psutil.Process(process.pid)
        for each in (*launcher.children(recursive=True), launcher):
            with suppress(psutil.NoSuchProcess):
                each.kill()
    raise SystemExit(f"a run was not done after {most:g} minutes; see {log}")


def disturbed(
    data: Path,
    out: Path,
    samples: int,
    log: Path,
    seed: int,
    gap: float,
    minutes: float,
    most: float,
) -> tuple[list[Fault], Counter[int], float]:
    """Train under faults, one about every `gap` seconds for some minutes, and then in peace.

    What came, exit codes, seconds. Without an end of the faults a slow machine, which takes longer
    to start than faults take to come, would never be done.

    Raises:
        SystemExit: it is not done after `most` minutes.
    """
    chance, begun, faults, codes = random.Random(seed), time.monotonic(), [], Counter[int]()

    def note(kind: str, what: str | None) -> None:
        if what is not None:
            faults.append(Fault(time.monotonic() - begun, kind, what))
            print(f"{faults[-1].second:7.0f} s  {kind}: {what}", flush=True)

    with log.open("wb") as file:
        while True:
            process = subprocess.Popen(
                command(data, out, samples), cwd=ROOT, stdout=file, stderr=file
            )
            launcher = psutil.Process(process.pid)
            while process.poll() is None:
                passed = time.monotonic() - begun
                disturbing, left = passed < 60 * minutes, 60 * most - passed
                if left <= 0:
                    give_up(process, most, log)
                try:
                    process.wait(chance.uniform(0.2, 1.8) * gap if disturbing else left)
                except subprocess.TimeoutExpired:
                    if not disturbing:
                        continue
                    kind = chance.choice(list(RUNNING))
                    try:
                        note(kind, RUNNING[kind](launcher, chance))
                    except psutil.NoSuchProcess:
                        continue
            codes[process.returncode] += 1
            if process.returncode == 0:
                return faults, codes, time.monotonic() - begun
            if time.monotonic() - begun > 60 * most:
                give_up(process, most, log)
            if chance.random() < 0.5:
                kind = chance.choice(list(BETWEEN))
                note(kind, BETWEEN[kind](out, chance))


def curve(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics but for what is the machine's."""
    return [
        {name: value for name, value in line.items() if name not in OF_THE_MACHINE}
        for line in read_metrics(run)
    ]


def tensors(run: Path) -> dict[str, str]:
    """The hashes of the last checkpoint's slices."""
    last = run / "checkpoints" / (run / "latest").read_text().strip()
    return {path.name: sha256_file(path) for path in sorted((last / "slices").iterdir())}


def page(options: argparse.Namespace, found: dict[str, Any]) -> str:
    """What ran, what was done to it, and what became of it."""
    faults, codes = found["faults"], found["codes"]
    day, same = f"{datetime.now(timezone.utc):%Y-%m-%d}", ("NOT THE SAME", "the same")
    told = ", ".join(f"{name} {version(name)}" for name in ("torch", "deepspeed"))
    lines = [
        "# A training run under faults",
        "",
        "The prior of `configs/micro`, two ranks, DeepSpeed ZeRO 1 over gloo, a reading process",
        f"each, {options.samples:,} samples; once in peace, and once with faults from a seed in",
        f"its first {options.minutes:g} minutes: the same command was given again after every end,",
        "until it said that it was done. This page was written by",
        "",
        "```text",
        f"python -m benchmarks.training_soak --samples {options.samples} --seed {options.seed} "
        f"--gap {options.gap:g} --minutes {options.minutes:g}",
        "```",
        "",
        f"on {day}, Python {platform.python_version()}, {told}, two cores.",
        "",
        "| | quiet | with faults |",
        "|---|---|---|",
        f"| minutes | {found['quiet'] / 60:.1f} | {found['seconds'] / 60:.1f} |",
        f"| faults | 0 | {len(faults)} |",
        f"| starts | 1 | {codes.total()} |",
        f"| lines of metrics | {found['lines']} | {found['lines']} |",
        f"| loss curve | | {same[found['curve']]} |",
        f"| bytes of the last checkpoint's tensors | | {same[found['bytes']]} |",
        "",
        "| fault | times |",
        "|---|---|",
    ]
    for kind, times in Counter(fault.kind for fault in faults).most_common():
        lines.append(f"| {kind} | {times} |")
    ends = ", ".join(f"{code} ({times} times)" for code, times in sorted(codes.items()))
    return "\n".join([*lines, "", f"Exit codes of the launcher: {ends}.", ""])


def main() -> int:
    """Print what happens; 1 when the two runs differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=720_000, help="of each run")
    parser.add_argument("--gap", type=float, default=16.0, help="seconds between faults, mean")
    parser.add_argument("--minutes", type=float, default=30.0, help="during which faults come")
    parser.add_argument("--most", type=float, default=120.0, help="minutes of a run, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/training-soak"))
    parser.add_argument("--report", type=Path, default=None, help="write the page here")
    parser.add_argument("--replace", action="store_true", help="remove the run of an earlier time")
    options = parser.parse_args()
    out = options.out.absolute()
    if options.replace:
        shutil.rmtree(out / "faults", ignore_errors=True)
    if (out / "faults").exists():
        raise SystemExit(f"{out}: has a run already; --replace it or choose another --out")
    demo = ["-m", "unclip", "demo", "--config", str(ROOT / "configs/micro"), "--out", out / "data"]
    subprocess.run([sys.executable, *map(str, demo)], cwd=ROOT, check=True)
    found: dict[str, Any] = {}
    done = out / f"quiet-{options.samples}.json"  # one quiet run may be compared with several
    if not done.is_file():
        shutil.rmtree(out / "quiet", ignore_errors=True)
        log = out / "quiet.log"
        seconds = quiet(out / "data", out / "quiet", options.samples, log, options.most)
        write_json(done, seconds)
    found["quiet"] = read_json(done)
    print(f"{found['quiet']:7.0f} s  the quiet run", flush=True)
    found["faults"], found["codes"], found["seconds"] = disturbed(
        *(out / "data", out / "faults", options.samples, out / "faults.log"),
        *(options.seed, options.gap, options.minutes, options.most),
    )
    found["curve"] = curve(out / "quiet") == curve(out / "faults")
    found["bytes"] = tensors(out / "quiet") == tensors(out / "faults")
    found["lines"] = len(curve(out / "quiet"))
    text = page(options, found)
    print(text)
    if options.report:
        write_atomic(options.report, text)
    return 0 if found["curve"] and found["bytes"] else 1


if __name__ == "__main__":
    sys.exit(main())
