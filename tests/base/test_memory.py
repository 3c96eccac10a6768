"""Free memory: the machine's, or what limits of containers and jobs leave of it."""

from pathlib import Path

import pytest

from base import memory


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty tree of control groups; 2,048,000 bytes are free on the machine."""
    info, root = tmp_path / "meminfo", tmp_path / "cgroup"
    info.write_text("MemTotal: 4000 kB\nMemAvailable:    2000 kB\nBuffers: 7 kB\n")
    root.mkdir()
    monkeypatch.setattr(memory, "_MEMINFO", info)
    monkeypatch.setattr(memory, "_ROOT", root)
    monkeypatch.setattr(memory, "_MEMBERSHIP", tmp_path / "membership")
    return root


def join(root: Path, membership: str) -> None:
    (root.parent / "membership").write_text(membership)


def limit(group: Path, most: str, used: int) -> None:
    group.mkdir(parents=True, exist_ok=True)
    (group / "memory.max").write_text(f"{most}\n")
    (group / "memory.current").write_text(f"{used}\n")


def test_a_containers_limit_counts_when_it_is_lower(root: Path) -> None:
    assert memory.available_memory() == 2_048_000
    join(root, "0::/\n")
    assert memory.available_memory() == 2_048_000
    limit(root, "max", 900_000)
    assert memory.available_memory() == 2_048_000
    limit(root, "1000000", 900_000)
    assert memory.available_memory() == 100_000
    (root / "memory.stat").write_text("anon 5\ninactive_file 300000\nactive_file 9\n")
    assert memory.available_memory() == 400_000
    limit(root, "9000000", 900_000)
    assert memory.available_memory() == 2_048_000
    limit(root, "500000", 900_000)
    assert memory.available_memory() == 0


def test_of_groups_inside_one_another_the_least_room_counts(root: Path) -> None:
    """As Slurm lays them: system.slice/slurmstepd.scope/job_7/step_0/user/task_0."""
    join(root, "0::/slurm/job_7/step_0\n")
    limit(root / "slurm/job_7/step_0", "max", 100)
    limit(root / "slurm/job_7", "700000", 600_000)
    limit(root / "slurm", "5000000", 600_000)
    assert memory.available_memory() == 100_000
    limit(root / "slurm/job_7/step_0", "640000", 600_000)
    assert memory.available_memory() == 40_000


def test_groups_of_version_1(root: Path) -> None:
    join(root, "11:cpu,cpuacct:/a\n4:memory:/slurm/uid_0/job_7\n0::/\n")
    job = root / "memory/slurm/uid_0/job_7"
    job.mkdir(parents=True)
    (job / "memory.limit_in_bytes").write_text("200000\n")
    (job / "memory.usage_in_bytes").write_text("150000\n")
    (job / "memory.stat").write_text("inactive_file 7\ntotal_inactive_file 1000\n")
    (root / "memory/memory.limit_in_bytes").write_text("9223372036854771712\n")
    (root / "memory/memory.usage_in_bytes").write_text("150000\n")
    assert memory.available_memory() == 51_000


def test_a_path_that_is_the_hosts_stands_for_the_root(root: Path) -> None:
    join(root, "0::/docker/4711\n")
    limit(root, "400000", 100_000)
    assert memory.available_memory() == 300_000


def test_this_machine_has_some() -> None:
    assert memory.available_memory() > 1 << 20
