"""The memory that a process may still take."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_MEMINFO = Path("/proc/meminfo")
_MEMBERSHIP = Path("/proc/self/cgroup")
_ROOT = Path("/sys/fs/cgroup")


class _Files(NamedTuple):
    """What a version of control groups calls its files."""

    limit: str
    used: str
    reclaimable: str  # in memory.stat: files in memory, which count as used until others need room


_V1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Files("memory.max", "memory.current", "inactive_file")


def available_memory() -> int:
    """Bytes that are free on this machine and within the limits of a container or a Slurm job."""
    lines = _MEMINFO.read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("MemAvailable:"))
    rooms = [_room(group, files) for group, files in _groups()]
    return min([int(line.split()[1]) * 1024, *(room for room in rooms if room is not None)])


def _groups() -> Iterator[tuple[Path, _Files]]:
    """This process's control groups and those around them; each may have a limit.

    Inside a container a group's path may be that of the host, and its folder is the root.
    """
    try:
        lines = _MEMBERSHIP.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = _ROOT / "memory" if controllers else _ROOT
        group = root / path.strip("/")
        for folder in (group, *group.parents):
            if folder == root or root in folder.parents:
                yield folder, _V1 if controllers else _V2


def _room(group: Path, files: _Files) -> int | None:
    limit, used = _count(group / files.limit), _count(group / files.used)
    if limit is None or used is None:
        return None
    return max(limit - used + _reclaimable(group, files.reclaimable), 0)


def _reclaimable(group: Path, name: str) -> int:
    try:
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def _count(path: Path) -> int | None:
    """The number in a file of the kernel; None when there is none, or `max`."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
