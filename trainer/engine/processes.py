"""The processes that train together: where this one stands, and how they find each other."""

from __future__ import annotations

import os
import socket
from datetime import timedelta

import torch
import torch.distributed as dist

TIMEOUT = timedelta(minutes=60)  # a slow save must not trip the collective that waits for it


def environment_rank() -> int:
    """This process's rank by torchrun's or Slurm's environment; 0 when it is alone."""
    for name in ("RANK", "SLURM_PROCID"):
        if name in os.environ:
            return int(os.environ[name])
    return 0


def environment_world_size() -> int:
    """The number of processes that were started together."""
    for name in ("WORLD_SIZE", "SLURM_NTASKS"):
        if name in os.environ:
            return int(os.environ[name])
    return 1


def local_device() -> torch.device:
    """This process's GPU, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    place = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0"
    return torch.device("cuda", int(place) % torch.cuda.device_count())


def fill_environment() -> None:
    """Set what a process group needs and nobody has set, so that one process can stand alone."""
    rank, world_size = environment_rank(), environment_world_size()
    os.environ.setdefault("RANK", str(rank))
    os.environ.setdefault("WORLD_SIZE", str(world_size))
    os.environ.setdefault("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
    if world_size == 1:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", str(_free_port()))


def is_joined() -> bool:
    """Whether this process is in a process group already."""
    return dist.is_available() and dist.is_initialized()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
