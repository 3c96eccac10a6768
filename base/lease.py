"""A lease on a folder: one owner at a time, and a dead owner's lease is taken over."""

import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import ClassVar

from base.errors import UserError

NAME = "unclip.lock"
RENEW_SECONDS = 30.0
STALE_SECONDS = 300.0
_NO_FLOCK = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}


@dataclass(frozen=True)
class Owner:
    """Who holds a folder; times are seconds since 1970."""

    host: str
    pid: int
    namespace: str  # pid namespace: containers may share a host's name but not its pids
    process_start: str  # tells a process from a later one with the same pid
    job: str | None  # Slurm job id
    start: float
    renewed: float
    token: str

    @staticmethod
    def me() -> "Owner":
        now, pid = time.time(), os.getpid()
        return Owner(
            host=socket.gethostname(),
            pid=pid,
            namespace=_namespace(),
            process_start=_process_start(pid),
            job=os.environ.get("SLURM_JOB_ID"),
            start=now,
            renewed=now,
            token=uuid.uuid4().hex,
        )

    def gives_way_to(self, other: "Owner") -> bool:
        """Whether `other` may take the folder: this owner is dead, silent, or the same job."""
        if time.time() - self.renewed > STALE_SECONDS:
            return True
        if self.job is not None and self.job == other.job:
            return True
        same_machine = (self.host, self.namespace) == (other.host, other.namespace)
        return same_machine and _process_start(self.pid) != self.process_start

    def describe(self) -> str:
        job = f", Slurm job {self.job}" if self.job else ""
        return f"host {self.host}, pid {self.pid}{job}"


class Lease:
    """Holds a folder while the block runs; within one process it may be entered again.

    The lease is the file unclip.lock, renewed every 30 s by a thread and stale after 5 min without
    renewal. A dead process of the same machine and an earlier run of the same Slurm job give way
    at once.

    Raises:
        UserError: on entry, when somebody else holds the folder; names host, pid and job.
    """

    _held: ClassVar[dict[Path, "_Holding"]] = {}
    _guard: ClassVar[threading.RLock] = threading.RLock()

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def __enter__(self) -> "Lease":
        self.folder.mkdir(parents=True, exist_ok=True)
        key = self.folder.resolve()
        with Lease._guard:
            holding = Lease._held.get(key)
            if holding is None or holding.pid != os.getpid():  # a forked child owns nothing
                holding = Lease._held[key] = _Holding(self.folder)
            holding.count += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        key = self.folder.resolve()
        with Lease._guard:
            holding = Lease._held[key]
            holding.count -= 1
            if holding.count == 0 and holding.pid == os.getpid():
                del Lease._held[key]
                holding.release()


class _Holding:
    """One process's hold on one folder, however often it was entered."""

    def __init__(self, folder: Path) -> None:
        self.pid, self.count = os.getpid(), 0
        self._path = folder.absolute() / NAME
        self._owner = Owner.me()
        with _locked(self._path) as file:
            other = _read(file)
            if other is not None and not other.gives_way_to(self._owner):
                raise UserError(f"{folder}: in use by {other.describe()}; stop that one or wait")
            try:
                _write(file, self._owner)
            except OSError:  # a full disk: what is there now names nobody
                self._path.unlink()
                raise
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def release(self) -> None:
        self._over.set()
        self._thread.join()
        with suppress(OSError), _locked(self._path) as file:
            if self._mine(file):
                self._path.unlink()

    def _renew(self) -> None:
        while not self._over.wait(RENEW_SECONDS):
            with suppress(OSError), _locked(self._path) as file:  # a full disk must not end us
                if self._mine(file):
                    self._owner = replace(self._owner, renewed=time.time())
                    _write(file, self._owner)

    def _mine(self, file: int) -> bool:
        other = _read(file)
        return other is not None and other.token == self._owner.token


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """The lease file, opened and locked for the moment that a look or a change takes."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _flock(file)
            if not _is_at(file, path):
                continue  # its owner removed it between our opening and our locking
            yield file
            return
        finally:
            os.close(file)


def _flock(file: int) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_FLOCK:  # some cluster file systems have none: do without
            raise


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _read(file: int) -> Owner | None:
    """The owner that the file names; None when it names none."""
    data = os.pread(file, 1 << 16, 0)
    try:
        return Owner(**json.loads(data))
    except (ValueError, TypeError):
        return None


def _write(file: int, owner: Owner) -> None:
    data = json.dumps(asdict(owner)).encode()
    os.pwrite(file, data, 0)
    os.ftruncate(file, len(data))


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _process_start(pid: int) -> str:
    """The process's start in clock ticks since boot; empty when it does not run."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]  # a zombie holds nothing
