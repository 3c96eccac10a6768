"""Free memory: the machine's, or what a container's limit leaves of it."""

from pathlib import Path

import pytest

from base import memory


def test_a_containers_limit_counts_when_it_is_lower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info, group = tmp_path / "meminfo", tmp_path / "cgroup"
    info.write_text("MemTotal: 4000 kB\nMemAvailable:    2000 kB\nBuffers: 7 kB\n")
    group.mkdir()
    monkeypatch.setattr(memory, "_MEMINFO", info)
    monkeypatch.setattr(memory, "_GROUP", group)
    assert memory.available_memory() == 2_048_000
    (group / "memory.current").write_text("900000\n")
    (group / "memory.max").write_text("max\n")
    assert memory.available_memory() == 2_048_000
    (group / "memory.max").write_text("1000000\n")
    assert memory.available_memory() == 100_000
    (group / "memory.stat").write_text("anon 5\ninactive_file 300000\nactive_file 9\n")
    assert memory.available_memory() == 400_000
    (group / "memory.max").write_text("9000000\n")
    assert memory.available_memory() == 2_048_000
    (group / "memory.max").write_text("500000\n")
    assert memory.available_memory() == 0


def test_this_machine_has_some() -> None:
    assert memory.available_memory() > 1 << 20
