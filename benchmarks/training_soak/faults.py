"""What is done to a run, or to what it left; each says what it did, or None if it could not."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil

_PAUSE = 8.0  # seconds that a rank stands still


def ranks(launcher: psutil.Process) -> list[psutil.Process]:
    """The processes that train; a launcher of several has them as children."""
    return sorted(launcher.children(), key=lambda process: process.pid)


def _kill_rank(launcher: psutil.Process, chance: random.Random) -> str | None:
    return _signal_rank(launcher, chance, signal.SIGKILL)


def _segfault_rank(launcher: psutil.Process, chance: random.Random) -> str | None:
    return _signal_rank(launcher, chance, signal.SIGSEGV)


def _signal_rank(
    launcher: psutil.Process, chance: random.Random, number: signal.Signals
) -> str | None:
    found = ranks(launcher)
    if not found:
        return None
    rank = chance.randrange(len(found))
    found[rank].send_signal(number)
    return f"{number.name} to rank {rank}"


def _signal_all(
    launcher: psutil.Process, chance: random.Random, number: signal.Signals
) -> str | None:
    found = ranks(launcher)
    for process in found:
        process.send_signal(number)
    return f"{number.name} to all ranks" if found else None


def _kill_all(launcher: psutil.Process, chance: random.Random) -> str | None:
    return _signal_all(launcher, chance, signal.SIGKILL)


def _stop_all(launcher: psutil.Process, chance: random.Random) -> str | None:
    return _signal_all(launcher, chance, chance.choice([signal.SIGTERM, signal.SIGUSR2]))


def _pause_rank(launcher: psutil.Process, chance: random.Random) -> str | None:
    found = ranks(launcher)
    if not found:
        return None
    rank = chance.randrange(len(found))
    found[rank].suspend()
    time.sleep(_PAUSE)
    found[rank].resume()
    return f"rank {rank} stood still for {_PAUSE:g} s"


def _kill_reader(launcher: psutil.Process, chance: random.Random) -> str | None:
    readers = [
        process
        for rank in ranks(launcher)
        for process in rank.children(recursive=True)
        if "spawn_main" not in " ".join(process.cmdline())
        and not process.children()
        and "resource_tracker" not in " ".join(process.cmdline())
    ]
    if not readers:
        return None
    chance.choice(readers).kill()
    return "SIGKILL to a reading process"


RUNNING: dict[str, Callable[[psutil.Process, random.Random], str | None]] = {
    "a rank killed": _kill_rank,
    "a rank's segmentation fault": _segfault_rank,
    "all ranks killed": _kill_all,
    "asked to stop": _stop_all,
    "a rank that stands still": _pause_rank,
    "a reading process killed": _kill_reader,
}
"""While the run goes on."""


def damage(run: Path, chance: random.Random) -> str | None:
    """Spoil a file of the newest checkpoint, when there is another one to go back to."""
    folders = sorted(path for path in (run / "checkpoints").glob("[0-9]*") if path.is_dir())
    if len(folders) < 2:
        return None
    files = sorted(path for path in folders[-1].rglob("*") if path.is_file())
    chosen, how = chance.choice(files), chance.choice(["a bit flipped", "cut short", "removed"])
    data = bytearray(chosen.read_bytes())
    if how == "removed":
        chosen.unlink()
    elif how == "cut short":
        chosen.write_bytes(data[: len(data) // 2])
    else:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        chosen.write_bytes(data)
    return f"{chosen.relative_to(folders[-1])}: {how}"


def leave_rubbish(run: Path, chance: random.Random) -> str | None:
    """What a save leaves that died before its rename."""
    folders = sorted((run / "checkpoints").glob("[0-9]*"))
    if not folders:
        return None
    target = run / "checkpoints" / f".saving-{int(folders[-1].name) + 1:012d}"
    if target.exists():  # such a one already
        return None
    shutil.copytree(folders[-1], target)
    return "an unfinished folder beside the checkpoints"


BETWEEN: dict[str, Callable[[Path, random.Random], str | None]] = {
    "a checkpoint damaged": damage,
    "an unfinished save": leave_rubbish,
}
"""While nothing runs."""
