"""One Ray over the processes of a Slurm job step, one on each node.

`srun unclip data prepare …` starts the same command on every node. The first process starts Ray's
head, waits for the others and does the work; those join it, serve, and end when it is gone.
MASTER_ADDR and MASTER_PORT say where they meet, RAY_AUTH_TOKEN keeps strangers out.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from base.errors import Unavailable, UserError
from base.stop import StopFlag
from data_pipeline.cluster import cluster, cores, object_store, session_folder, set_defaults

_START = (
    "from base.stop import stop_with_parent; stop_with_parent(); "
    "from ray.scripts.scripts import main; main()"
)
_JOIN_SECONDS = 300.0  # for all nodes to be there
_LEAVE_SECONDS = 20.0
_POLL_SECONDS = 0.5
_GONE = 4  # looks in a row at which the head does not answer
_ANSWER_SECONDS = 5.0


@dataclass(frozen=True)
class _Step:
    """Where this process stands in its job step."""

    rank: int
    count: int
    host: str
    port: int

    @staticmethod
    def here() -> _Step:
        """Raises:
        UserError: several processes, and nothing says where they meet.
        """
        count = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
        if count == 1:
            return _Step(0, 1, "", 0)
        try:
            where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        except (KeyError, ValueError):
            raise UserError(
                f"one of {count} processes: MASTER_ADDR and MASTER_PORT are not set; start with "
                "`unclip launch` or `python -m slurm.task`, or export the first node's address "
                "and a free port"
            ) from None
        return _Step(int(os.environ["SLURM_PROCID"]), count, *where)

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


@contextmanager
def job_ray(address: str | None = None) -> Iterator[None]:
    """On the first of a step's processes: Ray over all of them, for what the block does with Ray.

    Alone, or with the address of another cluster, nothing is done.

    Raises:
        UserError: Ray does not start, its port is taken, or a node does not join.
        KeyboardInterrupt, Stopped: asked to stop meanwhile.
    """
    step = _Step.here()
    if step.count == 1 or address is not None:
        yield
        return
    where = ["--head", f"--port={step.port}", "--include-dashboard=false"]
    with StopFlag() as stop:
        _wait_for_port(step, stop)
    with _node(step.host, where) as child:
        with StopFlag() as stop:
            _wait_for_head(step, stop, child)
        with cluster(step.address) as ray:
            with StopFlag() as stop:
                _wait_for_nodes(ray, step, stop)
            yield


def serve_job(address: str | None = None) -> bool:
    """On a step's other processes: give this node to the first one's Ray until that is gone.

    A signal to stop is the first one's to act on. False at once on that one, or alone.

    Raises:
        UserError: there is no head, or this node's Ray ended.
    """
    step = _Step.here()
    if step.rank == 0 or address is not None:
        return False
    with StopFlag() as stop:
        _wait_for_head(step, stop)
        with _node(_own_address(step), [f"--address={step.address}"]) as child:
            missed = 0
            while missed < _GONE:
                missed = 0 if _answers(step) else missed + 1
                if child.poll() is not None and not missed:
                    raise Unavailable(f"{socket.gethostname()}: Ray ended on this node")
                time.sleep(_POLL_SECONDS)
    return True


@contextmanager
def _node(address: str, where: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A node of Ray while the block runs.

    In a session of its own, because Slurm sends a signal to the process groups of all tasks; and it
    ends with this process, however that ends.
    """
    set_defaults()
    os.environ.setdefault(
        "RAY_AUTH_MODE", "token" if "RAY_AUTH_TOKEN" in os.environ else "disabled"
    )
    folder = session_folder()
    size = [f"--num-cpus={_cpus()}", f"--object-store-memory={object_store()}"]
    more = [f"--node-ip-address={address}", f"--temp-dir={folder}", *size]
    child = subprocess.Popen(
        [sys.executable, "-c", _START, "start", *where, *more, "--block"],
        env={**os.environ, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"},  # or 30 s without a head
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(_LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for_port(step: _Step, stop: StopFlag) -> None:
    """See that nobody else answers where the head will be, or he would be taken for it."""
    deadline = time.monotonic() + _LEAVE_SECONDS  # an earlier head may be leaving
    while _answers(step):
        stop.raise_if_requested()
        if time.monotonic() > deadline:
            raise Unavailable(f"{step.address}: the port is another program's; run it again later")
        time.sleep(_POLL_SECONDS)


def _wait_for_head(
    step: _Step, stop: StopFlag, child: subprocess.Popen[bytes] | None = None
) -> None:
    deadline = time.monotonic() + _JOIN_SECONDS
    while not _answers(step):
        stop.raise_if_requested()
        if child is not None and child.poll() is not None:
            raise Unavailable(
                f"{step.address}: Ray's head ended with {child.returncode}; see above"
            )
        if time.monotonic() > deadline:
            raise Unavailable(f"{step.address}: no Ray there after {_JOIN_SECONDS:.0f} s")
        time.sleep(_POLL_SECONDS)


def _wait_for_nodes(ray: Any, step: _Step, stop: StopFlag) -> None:
    deadline = time.monotonic() + _JOIN_SECONDS
    while (there := sum(node["Alive"] for node in ray.nodes())) < step.count:
        stop.raise_if_requested()
        if time.monotonic() > deadline:
            raise Unavailable(
                f"Ray: {there} of {step.count} nodes joined within {_JOIN_SECONDS:.0f} s; the logs "
                "of the job's other processes say why"
            )
        time.sleep(_POLL_SECONDS)
    print(f"Ray: {there} nodes", file=sys.stderr, flush=True)


def _answers(step: _Step) -> bool:
    try:
        socket.create_connection((step.host, step.port), _ANSWER_SECONDS).close()
    except OSError:
        return False
    return True


def _own_address(step: _Step) -> str:
    """By which the head can reach this node: that of the interface which leads to it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((step.host, step.port))
        address: str = probe.getsockname()[0]
        return address


def _cpus() -> int:
    return int(os.environ.get("SLURM_CPUS_PER_TASK", cores()))
