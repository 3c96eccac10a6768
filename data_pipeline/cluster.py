"""The Ray that work runs on: an existing cluster, or a quiet one started for the occasion."""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import statistics
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from base.errors import UserError, one_line
from base.stop import StopFlag

_PREFIX = "ucray-"  # short: Unix sockets below it must fit 107 bytes
# Whole pictures stay inside tasks; what travels are a CLIP's crops, two batches of each task.
_OBJECT_STORE_PER_CORE = 96 << 20
_LEAST_OBJECT_STORE = 80 << 20  # Ray takes no less
_SETTINGS = {
    "RAY_worker_niceness": "0",  # Ray's own 15 starves workers beside anything else that computes
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DISABLE_DOCKER_CPU_WARNING": "1",
    "RAY_enable_open_telemetry": "0",
    # Ray gives a start 30 s, which busy cores do not always make.
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_gcs_server_port_wait_time_s": "300",
}
_POLL_SECONDS = 0.5
_CONNECT_SECONDS = 5.0
_LEAVE_SECONDS = 3.0  # for a start that nobody wants any more to come to its end
_PATIENCE = 60.0  # seconds that a shard may take before it can be called late
_SLOWER = 3.0  # times the median: then it is
_pools: dict[str, list[Any]] = {}  # actors kept for the life of this process's cluster
_embedded = threading.Event()  # set while the cluster is one that `cluster` started

R = TypeVar("R")


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


@contextmanager
def cluster(address: str | None = None) -> Iterator[Any]:
    """Connects to Ray and yields the module; leaves as it was what was running before.

    With an address the existing cluster is used, otherwise an embedded one that ends with the
    block. Blocks may be nested: the outermost owns the cluster, so several steps share one start.

    Raises:
        UserError: no cluster answers at `address`, or none can be started.
        KeyboardInterrupt, Stopped: asked to stop while Ray started.
    """
    set_defaults()
    # Python ignores what is raised in a callback, and importing has some (importlib._bootstrap):
    # without a flag an interrupt in such a moment is lost, one of 45 in a trial.
    with StopFlag() as stop:
        import ray
    stop.raise_if_requested()
    if ray.is_initialized():
        yield ray
        return
    if address:
        _require_reachable(address)
    holder = _Holder(ray, address)
    try:
        holder.begin()
        if not address:
            _embedded.set()
        with _messages_on_stderr():
            yield ray
    finally:
        _embedded.clear()
        _pools.clear()
        holder.end()


def set_defaults() -> None:
    """Ray's settings that are ours, for this process and its children, where nobody set others."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)


class _Holder(threading.Thread):
    """Starts Ray, keeps it and ends it, so that signals find the main thread free.

    Ray's start waits in C++, where Python runs no signal handlers, and on the main thread it puts
    a SIGTERM handler of its own in the place of whatever is there. One thread does all of it,
    because the kernel ends Ray's processes with the thread that started them.
    """

    def __init__(self, ray: Any, address: str | None) -> None:
        super().__init__(name="ray", daemon=True)
        self._ray, self._address = ray, address
        self._folder = None if address else session_folder()
        self._there, self._over = threading.Event(), threading.Event()
        self._error: BaseException | None = None

    def begin(self) -> None:
        """Returns when Ray is there.

        Raises:
            UserError: it did not start.
            KeyboardInterrupt, Stopped: asked to stop meanwhile.
        """
        with StopFlag() as stop:
            self.start()
            while not self._there.wait(_POLL_SECONDS) and not stop.requested:
                pass
        stop.raise_if_requested()
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """Returns when Ray is gone; one that is stuck in its start ends with this process."""
        self._over.set()
        self.join(None if self._there.is_set() else _LEAVE_SECONDS)

    def run(self) -> None:
        try:
            _start(self._ray, self._address, self._folder)
        except BaseException as error:  # raised where it is waited for
            self._error = error
        self._there.set()
        self._over.wait()
        with suppress(Exception):
            self._ray.shutdown()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)


def _require_reachable(address: str) -> None:
    """Ray waits for minutes where nobody listens; a socket knows at once."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return  # such as `auto`: Ray looks around by itself, and quickly
    try:
        socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"{address}: no Ray cluster answers there ({error})") from error


def _start(ray: Any, address: str | None, folder: str | None) -> None:
    """Connects to the cluster at `address`, or starts one in `folder`."""
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address:
        options["address"] = address
    else:
        options |= {"address": "local", "num_cpus": cores(), "include_dashboard": False}
        options |= {"object_store_memory": object_store(), "_temp_dir": folder}
    logging.getLogger("ray").setLevel(logging.ERROR)  # its start warns before it looks at options
    try:
        ray.init(**options)
    except Exception as error:  # Ray raises bare Exception when its start times out
        where, why = address or "embedded Ray", one_line(error)
        raise UserError(f"{where}: Ray did not start ({why})") from error


def object_store() -> int:
    """Bytes of shared memory for what travels, no more than is there."""
    wanted = max(2, cores()) * _OBJECT_STORE_PER_CORE
    with suppress(OSError):
        wanted = min(wanted, shutil.disk_usage("/dev/shm").free * 3 // 4)
    return max(_LEAST_OBJECT_STORE, wanted)


@contextmanager
def _messages_on_stderr() -> Iterator[None]:
    """Ray tells of dead workers on standard output, which is for results alone.

    It has no option for it; a Ray that is built otherwise tells where it likes.
    """
    from ray._private import worker

    tell = getattr(worker, "print_to_stdstream", None)
    if tell is None:
        yield
        return
    worker.print_to_stdstream = lambda data, *a, **k: tell({**data, "is_err": True}, *a, **k)
    try:
        yield
    finally:
        worker.print_to_stdstream = tell


def session_folder() -> str:
    """A new folder for Ray's sockets and logs; those that killed processes left are removed."""
    place = Path("/tmp") if os.access("/tmp", os.W_OK) else Path(tempfile.gettempdir())
    for old in place.glob(f"{_PREFIX}*"):
        match = re.fullmatch(rf"{_PREFIX}(\d+)-\w+", old.name)
        if match and not Path(f"/proc/{match[1]}").exists():
            shutil.rmtree(old, ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=place)


@dataclass(frozen=True)
class _Try:
    shard: int
    began: float


def run_bounded(
    ray: Any,
    submit: Callable[[int], Any],
    shards: Iterable[int],
    limit: int,
    stop: StopFlag,
    patience: float = _PATIENCE,
) -> Iterator[tuple[int, Any]]:
    """Yields (shard, result) as results come, with at most `limit` tasks under way.

    When no shard waits any more, one that takes far longer than the others did (and more than
    `patience` seconds) is begun a second time: the first result counts.

    Nobody waits for the other, and nobody cancels it: it ends with the cluster or when it finds its
    run's folder gone. `ray.cancel` of a task that is just ending ends this process
    (ray-project/ray, pull request 54798, and still in 2.60: "Tried to complete task that was not
    pending").

    Raises:
        UserError: a task failed, or its workers kept dying.
        KeyboardInterrupt, Stopped: `stop` was set; nobody waits for what is under way.
    """
    waiting = deque(shards)
    running: dict[Any, _Try] = {}
    took: list[float] = []

    def begin(shard: int) -> None:
        running[submit(shard)] = _Try(shard, time.monotonic())

    while waiting or running:
        stop.raise_if_requested()
        while waiting and len(running) < limit:
            begin(waiting.popleft())
        if not waiting and len(running) < limit:
            for shard in _stragglers(running.values(), took, patience)[: limit - len(running)]:
                begin(shard)
        ready, _ = ray.wait(list(running), num_returns=1, timeout=_POLL_SECONDS)
        for reference in ready:
            done = running.pop(reference)
            others = [r for r, other in running.items() if other.shard == done.shard]
            try:
                result = fetch(ray, reference, f"shard {done.shard}")
            except UserError:
                if not others:
                    raise
                continue  # the other attempt may end well
            took.append(time.monotonic() - done.began)
            for other in others:
                del running[other]
            yield done.shard, result


def _stragglers(tries: Iterable[_Try], took: Sequence[float], patience: float) -> list[int]:
    """Shards under way once that take much longer than those that are done."""
    if not took:
        return []
    longest = max(patience, _SLOWER * statistics.median(took))
    now = time.monotonic()
    count = Counter(each.shard for each in tries)
    late = [each for each in tries if now - each.began > longest]
    return [each.shard for each in late if count[each.shard] == 1]


def fetch(ray: Any, reference: Any, what: str) -> Any:
    """A task's result; the error of its code as it was raised there.

    Raises:
        UserError: the worker died and so did those that tried again.
    """
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise cause_of(error) from error
    except ray.exceptions.OutOfMemoryError as error:
        raise UserError(f"{what}: its worker ran out of memory, several times") from error
    except ray.exceptions.RayError as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"{what}: its worker died, several times ({first})") from error


def cause_of(error: Any) -> BaseException:
    """What a task's code raised, out of Ray's RayTaskError."""
    return error.cause if isinstance(error.cause, BaseException) else error


def can_grow() -> bool:
    """Whether nodes may join the cluster: one that was given may be scaled, an embedded one not."""
    return not _embedded.is_set()


def cpus(ray: Any) -> int:
    """CPUs of the cluster."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def actor_pool(ray: Any, name: str, count: int, make: Callable[[], Any]) -> list[Any]:
    """At least `count` actors of a kind, kept until the cluster ends."""
    pool = _pools.setdefault(name, [])
    while len(pool) < count:
        pool.append(make())
    return pool[:count]
