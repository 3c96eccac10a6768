"""The doctor's looks at a machine: each probe gives one finding and changes nothing."""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from base.memory import available_memory

State = Literal["ok", "lacking", "optional"]
_INSTALL = "pip install -c constraints.txt -e . (make demo does it)"
_GB = 1e9
DISK_GB = 3.0
MEMORY_GB = 6.0


@dataclass(frozen=True)
class Finding:
    """What one look found. `lacking`: the demo needs it; `optional`: only some commands do."""

    name: str
    state: State
    value: str
    remedy: str | None = None


@dataclass(frozen=True)
class Probe:
    """A look, whether the demo needs what it looks for, and how to get that."""

    look: Callable[[str], Finding]
    needed: bool
    remedy: str


def _python(name: str) -> Finding:
    state: State = "ok" if sys.version_info >= (3, 10) else "lacking"
    value = f"{platform.python_version()} ({sys.executable})"
    return Finding(name, state, value, "Python 3.10 or newer")


def _packages(name: str) -> Finding:
    wanted = [
        re.split(r"[ ;<>=!~\[(]", line, maxsplit=1)[0]
        for line in importlib.metadata.requires("unclip") or ()
        if "extra ==" not in line
    ]
    missing = [package for package in wanted if _version(package) is None]
    if missing:
        return Finding(name, "lacking", f"missing: {', '.join(missing)}", _INSTALL)
    return Finding(name, "ok", f"all {len(wanted)} that unclip depends on")


def _torch(name: str) -> Finding:
    import torch
    import torchvision

    # A torchvision built for another torch imports, and then lacks its operators.
    torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    cuda = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    return Finding(
        name, "ok", f"{torch.__version__}, {cuda}; torchvision {torchvision.__version__}"
    )


def _accelerator(name: str) -> Finding:
    import torch

    if not torch.cuda.is_available():
        remedy = "an NVIDIA GPU with its driver; without one everything runs on the CPU, small"
        return Finding(name, "optional", "no CUDA GPU", remedy)
    found = []
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        found.append(f"{about.name}, {about.total_memory / _GB:.0f} GB")
    return Finding(name, "ok", f"{len(found)}: {'; '.join(found)}")


def _cpu(name: str) -> Finding:
    text = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", text)
    flags = set((re.search(r"flags\s*: (.*)", text) or [""])[0].split())
    fast = sorted(flags & {"avx512_bf16", "amx_bf16"})
    bf16 = f"bf16 in hardware ({', '.join(fast)})" if fast else "no bf16 in hardware"
    kind = model[1] if model else platform.machine()
    return Finding(name, "ok", f"{_cores()} cores, {kind}, {bf16}")


def _memory(name: str) -> Finding:
    info = Path("/proc/meminfo").read_text()
    total, free = _kilobytes(info, "MemTotal") * 1024, available_memory()
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    state: State = "ok" if total / _GB >= MEMORY_GB else "lacking"
    value = f"{total / _GB:.1f} GB, {free / _GB:.1f} GB free"
    return Finding(name, state, value, f"a machine with at least {MEMORY_GB:.0f} GB of memory")


def _disk(name: str) -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / _GB
    state: State = "ok" if free >= DISK_GB else "lacking"
    remedy = f"at least {DISK_GB:.0f} GB of disk: free some, or run in a folder of another disk"
    return Finding(name, state, f"{free:.0f} GB free in {Path.cwd()}", remedy)


def _shared_memory(name: str) -> Finding:
    free = shutil.disk_usage("/dev/shm").free / _GB
    state: State = "ok" if free >= 1 else "optional"
    remedy = "a larger /dev/shm (docker run --shm-size=4g); without it Ray is slower"
    return Finding(name, state, f"{free:.1f} GB free in /dev/shm", remedy)


def _compiler(name: str) -> Finding:
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    header = Path(sysconfig.get_path("include")) / "Python.h"
    lacks = [] if compiler else ["a C++ compiler (apt-get install g++)"]
    lacks += [] if _ninja() else ["ninja (pip install ninja)"]
    lacks += [] if header.exists() else ["Python.h (apt-get install python3-dev)"]
    if lacks:
        return Finding(name, "lacking", "DeepSpeed compiles with it once", ", ".join(lacks))
    return Finding(name, "ok", f"{_first_line(str(compiler), '--version')}; ninja")


def _deepspeed(name: str) -> Finding:
    # Its import asks the machine for compilers and devices at length; the version is enough here.
    version = importlib.metadata.version("deepspeed")
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or f"{cache}/torch_extensions").expanduser()
    built = any(root.glob("**/deepspeed_shm_comm*.so"))
    operator = "its CPU operator is built" if built else "builds its CPU operator at first use"
    return Finding(name, "ok", f"{version}; {operator} ({root})")


def _ray(name: str) -> Finding:
    import ray

    return Finding(name, "ok", str(ray.__version__))


def _open_clip(name: str) -> Finding:
    import open_clip

    return Finding(name, "ok", f"{open_clip.__version__}, {len(open_clip.list_models())} models")


def _slurm(name: str) -> Finding:
    missing = [tool for tool in ("sbatch", "srun", "sinfo") if shutil.which(tool) is None]
    if missing:
        remedy = "a Slurm cluster's login node, or apt-get install slurm-wlm munge"
        return Finding(name, "optional", f"no {', '.join(missing)} on PATH", remedy)
    return Finding(name, "ok", _first_line("sinfo", "--version"))


def _munge(name: str) -> Finding:
    if shutil.which("munge") is None:
        remedy = "apt-get install munge (only Slurm's own machines need it)"
        return Finding(name, "optional", "no munge on PATH", remedy)
    done = subprocess.run(["munge", "-n"], capture_output=True, text=True, timeout=10)
    if done.returncode:
        return Finding(name, "optional", "munge is installed, munged does not run", "start munged")
    return Finding(name, "ok", "munged runs")


PROBES: dict[str, Probe] = {
    "python": Probe(_python, True, "Python 3.10 or newer"),
    "packages": Probe(_packages, True, _INSTALL),
    "torch": Probe(_torch, True, _INSTALL),
    "gpu": Probe(_accelerator, False, "torch, then an NVIDIA GPU with its driver"),
    "cpu": Probe(_cpu, False, "a Linux machine with /proc"),
    "memory": Probe(_memory, False, "a Linux machine with /proc"),
    "disk": Probe(_disk, True, "a readable working folder"),
    "shared memory": Probe(_shared_memory, False, "a mounted /dev/shm"),
    "compiler": Probe(_compiler, True, "apt-get install g++"),
    "deepspeed": Probe(_deepspeed, True, _INSTALL),
    "ray": Probe(_ray, True, _INSTALL),
    "open_clip": Probe(_open_clip, True, _INSTALL),
    "slurm": Probe(_slurm, False, "a Slurm cluster's login node"),
    "munge": Probe(_munge, False, "apt-get install munge"),
}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _kilobytes(info: str, key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+) kB", info)
    return int(found[1]) if found else 0


def _cores() -> float:
    """Cores that this process may use: its affinity, cut by the container's quota."""
    cores = float(len(os.sched_getaffinity(0)))
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.exists() and (fields := quota.read_text().split())[0] != "max":
        cores = min(cores, int(fields[0]) / int(fields[1]))
    return int(cores) if cores == int(cores) else round(cores, 1)


def _ninja() -> bool:
    """On PATH, or beside this Python, which a console script does not put on PATH."""
    return shutil.which("ninja") is not None or (Path(sys.executable).parent / "ninja").exists()


def _first_line(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return (done.stdout.strip() or done.stderr.strip()).splitlines()[0]
