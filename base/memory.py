"""The memory that a process may still take."""

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Bytes that are free on this machine and within this container's limit."""
    lines = _MEMINFO.read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("MemAvailable:"))
    free = int(line.split()[1]) * 1024
    limit = _count(_GROUP / "memory.max")
    used = _count(_GROUP / "memory.current")
    if limit is None or used is None:
        return free
    return min(free, max(limit - used + _reclaimable(), 0))


def _reclaimable() -> int:
    """Bytes of files in memory, which count as used until something else needs the room."""
    try:
        lines = (_GROUP / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))


def _count(path: Path) -> int | None:
    """The number in a file of the kernel; None when there is none, or `max`."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
