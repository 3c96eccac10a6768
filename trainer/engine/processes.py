"""The processes that train together: where this one stands, and how they find each other."""

from __future__ import annotations

import gc
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from base.errors import UserError

TIMEOUT = timedelta(minutes=60)  # a slow save must not trip the collective that waits for it


def environment_rank() -> int:
    """This process's rank by torchrun's or srun's environment; 0 when it is alone."""
    if "RANK" in os.environ:
        return int(os.environ["RANK"])
    return int(os.environ["SLURM_PROCID"]) if _under_srun() else 0


def environment_world_size() -> int:
    """The number of processes that were started together."""
    if "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    return int(os.environ["SLURM_STEP_NUM_TASKS"]) if _under_srun() else 1


def local_device() -> torch.device:
    """This process's GPU, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", _local_rank() % torch.cuda.device_count())


@contextmanager
def group_environment() -> Iterator[None]:
    """Set what joining a process group needs and nobody has set; taken back at the end.

    So one process can stand alone, and its children do not inherit its port. LOCAL_RANK stays:
    ZeRO 3 looks it up at every gather.

    Raises:
        UserError: several processes were started, and nothing says where they meet.
    """
    world_size = environment_world_size()
    wanted = {
        "RANK": str(environment_rank()),
        "WORLD_SIZE": str(world_size),
    }
    os.environ.setdefault("LOCAL_RANK", str(_local_rank()))
    if world_size == 1:
        wanted |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    elif not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        raise UserError(
            f"one of {world_size} processes: MASTER_ADDR and MASTER_PORT are not set; "
            "start with torchrun, or export the first host's name and a free port"
        )
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _under_srun() -> bool:
    """A batch script has the job's SLURM_NTASKS too, but it is one process, not one of a step."""
    return "SLURM_STEP_NUM_TASKS" in os.environ and "SLURM_PROCID" in os.environ


def _local_rank() -> int:
    if "LOCAL_RANK" in os.environ:
        return int(os.environ["LOCAL_RANK"])
    return int(os.environ["SLURM_LOCALID"]) if _under_srun() else 0


def is_joined() -> bool:
    """Whether this process is in a process group already."""
    return dist.is_available() and dist.is_initialized()


@contextmanager
def group_scope() -> Iterator[None]:
    """A process group that is made in the block ends with it; one that was there before stays.

    Around all the training that a process does: processes cannot meet a second time at the same
    address. An error that is not the user's may come in the middle of a collective, and leaving
    would wait for the others: then the process ends at once, and the launcher ends them.
    """
    given = is_joined()
    try:
        yield
    except (UserError, KeyboardInterrupt):  # agreed on by all, or found between two steps
        if not given:
            _leave()
        raise
    if not given:
        _leave()


def _leave() -> None:
    """Leave the process group; its threads have let go of every tensor, and most have ended.

    A gloo thread may hold the last reference to a tensor for a moment after its collective is done.
    When the interpreter has begun to end by then, letting go of it aborts the process (SIGABRT,
    "terminate called without an active exception"), with all its work done: PyTorch #190489.
    """
    if not is_joined():
        return
    comm: Any = sys.modules.get("deepspeed.comm.comm")
    if comm is not None and comm.is_initialized():
        comm.destroy_process_group()  # torch's, and what DeepSpeed keeps of it
    else:
        dist.destroy_process_group()
    gc.collect()  # the last reference ends the threads, and engines are cycles
    time.sleep(0.1)  # ZeRO 3 never drops its last one; so its threads get the lock once more


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
