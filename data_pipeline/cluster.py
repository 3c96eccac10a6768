"""The Ray that work runs on: an existing cluster, or a quiet one started for the occasion."""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

from base.errors import UserError
from base.stop import StopFlag

_PREFIX = "ucray-"  # short: Unix sockets below it must fit 107 bytes
_OBJECT_STORE = 128 << 20  # pictures stay inside tasks, so little travels
_SETTINGS = {
    "RAY_worker_niceness": "0",  # Ray's own 15 starves workers beside anything else that computes
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DISABLE_DOCKER_CPU_WARNING": "1",
    "RAY_enable_open_telemetry": "0",
}
_POLL_SECONDS = 0.5
_CONNECT_SECONDS = 5.0
_START_SECONDS = 300.0
_pools: dict[str, list[Any]] = {}  # actors kept for the life of this process's cluster

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
        UserError: no cluster answers at `address`.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield ray
        return
    if address:
        _require_reachable(address)
    folder = None if address else _session_folder()
    try:
        _start(ray, address, folder)
        with _messages_on_stderr():
            yield ray
    finally:
        _pools.clear()
        with suppress(Exception):
            ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


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
        options |= {"object_store_memory": _OBJECT_STORE, "_temp_dir": folder}
    try:
        with _light_start() if folder else nullcontext():
            ray.init(**options)
    except Exception as error:  # Ray raises bare Exception when its start times out
        where, why = address or "embedded Ray", " ".join(str(error).split())
        raise UserError(f"{where}: Ray did not start ({why})") from error


@contextmanager
def _light_start() -> Iterator[None]:
    """Starts Ray without services that nobody here uses, and with patience.

    Autoscaler, log monitor and API server are three Python processes of the five that a start
    otherwise waits for. Ray gives a start 30 s, which two busy cores do not always make. Both are
    beyond its options; a Ray that is built otherwise starts in its own way.
    """
    from ray._private import node, services

    patches: list[tuple[Any, str, Any]] = [
        (node.Node, name, lambda *_, **__: None)
        for name in ("start_monitor", "start_log_monitor", "start_api_server")
    ]
    if hasattr(services, "get_node"):
        patches.append((services, "get_node", _patient(services.get_node)))
    patches = [patch for patch in patches if hasattr(patch[0], patch[1])]
    before = [getattr(owner, name) for owner, name, _ in patches]
    for owner, name, value in patches:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for (owner, name, _), value in zip(patches, before, strict=True):
            setattr(owner, name, value)


@contextmanager
def _messages_on_stderr() -> Iterator[None]:
    """Ray tells of dead workers on standard output, which is for results alone."""
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


def _patient(get_node: Callable[..., Any]) -> Callable[..., Any]:
    """Asks again for a while where Ray's own question fails at once."""

    def ask(*arguments: Any, **options: Any) -> Any:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                return get_node(*arguments, **options)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    return ask


def _session_folder() -> str:
    """A new folder for Ray's sockets and logs; those that killed processes left are removed."""
    place = Path("/tmp") if os.access("/tmp", os.W_OK) else Path(tempfile.gettempdir())
    for old in place.glob(f"{_PREFIX}*"):
        match = re.fullmatch(rf"{_PREFIX}(\d+)-\w+", old.name)
        if match and not Path(f"/proc/{match[1]}").exists():
            shutil.rmtree(old, ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=place)


def run_bounded(
    ray: Any,
    submit: Callable[[int], Any],
    shards: Iterable[int],
    limit: int,
    stop: StopFlag,
) -> Iterator[tuple[int, Any]]:
    """Yields (shard, result) as results come, with at most `limit` tasks under way.

    Raises:
        UserError: a task failed, or its workers kept dying.
        KeyboardInterrupt, Stopped: `stop` was set; what is under way is given up.
    """
    waiting = deque(shards)
    running: dict[Any, int] = {}
    try:
        while waiting or running:
            stop.raise_if_requested()
            while waiting and len(running) < limit:
                shard = waiting.popleft()
                running[submit(shard)] = shard
            ready, _ = ray.wait(list(running), num_returns=1, timeout=_POLL_SECONDS)
            for reference in ready:
                shard = running.pop(reference)
                yield shard, fetch(ray, reference, f"shard {shard}")
    finally:
        for reference in running:
            with suppress(Exception):
                ray.cancel(reference, force=False)


def fetch(ray: Any, reference: Any, what: str) -> Any:
    """A task's result; the error of its code as it was raised there.

    Raises:
        UserError: the worker died and so did those that tried again.
    """
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, BaseException) else error
        raise cause from error
    except ray.exceptions.OutOfMemoryError as error:
        raise UserError(f"{what}: its worker ran out of memory, several times") from error
    except ray.exceptions.RayError as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"{what}: its worker died, several times ({first})") from error


def actor_pool(ray: Any, name: str, count: int, make: Callable[[], Any]) -> list[Any]:
    """At least `count` actors of a kind, kept until the cluster ends."""
    pool = _pools.setdefault(name, [])
    while len(pool) < count:
        pool.append(make())
    return pool[:count]
