"""A lease on a folder: one owner at a time, and a dead owner's lease is taken over."""

import errno
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import ClassVar

from base.errors import UserError
from base.owner import Owner
from base.places import Anywhere, Place, place
from base.store_errors import StoreError
from base.store_lease import StoreRecord
from base.stores import StorePath

NAME = "unclip.lock"
RENEW_SECONDS = 30.0
_LATE_SECONDS = 2 * RENEW_SECONDS
_NO_FLOCK = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}


class Lease:
    """Holds a folder while the block runs; within one process it may be entered again.

    The lease is the file (in a store the object) unclip.lock, renewed every 30 s by a thread and
    stale after 5 min without renewal. A dead process of the same machine gives way at once, and so
    does an earlier run of the same Slurm job, but not to `visitor`: a command that runs beside it.

    Raises:
        UserError: on entry, when somebody else holds the folder; names host, pid and job.
    """

    _held: ClassVar[dict[Place, "_Holding"]] = {}
    _guard: ClassVar[threading.RLock] = threading.RLock()

    def __init__(self, folder: Anywhere, visitor: bool = False) -> None:
        self.folder, self._visitor = place(folder), visitor

    def __enter__(self) -> "Lease":
        self.folder.mkdir(parents=True, exist_ok=True)
        key = _resolved(self.folder)
        with Lease._guard:
            holding = Lease._held.get(key)
            if holding is None or holding.pid != os.getpid():  # a forked child owns nothing
                holding = Lease._held[key] = _Holding(self.folder, self._visitor)
            holding.count += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        key = _resolved(self.folder)
        with Lease._guard:
            holding = Lease._held[key]
            holding.count -= 1
            if holding.count == 0 and holding.pid == os.getpid():
                del Lease._held[key]
                holding.release()


def require_held(folder: Anywhere) -> None:
    """Before a write: end what lost the folder while it was stopped (SIGSTOP, a suspended machine).

    Looks at the lease only when it was not renewed in time, so it may be called at every step. A
    process that never held the folder, such as a worker of the one that does, is let pass.

    Raises:
        UserError: somebody else has the folder, or had it since.
    """
    with Lease._guard:
        holding = Lease._held.get(_resolved(place(folder)))
    if holding is not None and holding.pid == os.getpid():
        holding.require()


def owner(folder: Path) -> Owner | None:
    """Who holds a local folder and would not give way to this process; nothing is written."""
    try:
        found = Owner.from_bytes((folder / NAME).read_bytes())
    except OSError:
        return None
    return None if found is None or found.gives_way_to(Owner.me()) else found


def end_lease(folder: Path, holder: Owner) -> None:
    """Take a local folder from a holder that is known to have ended, however that is known."""
    _FileRecord(folder.absolute() / NAME).drop(holder)


def _resolved(folder: Place) -> Place:
    return folder if isinstance(folder, StorePath) else folder.resolve()


class _Holding:
    """One process's hold on one folder, however often it was entered."""

    def __init__(self, folder: Place, visitor: bool) -> None:
        self.pid, self.count, self._folder = os.getpid(), 0, folder
        path = folder.absolute() / NAME
        self._record = StoreRecord(path) if isinstance(path, StorePath) else _FileRecord(path)
        self._owner = replace(Owner.me(), job=None) if visitor else Owner.me()
        if (other := self._record.take(self._owner)) is not None:
            raise UserError(f"{folder}: in use by {other.describe()}; stop that one or wait")
        self._lost = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def require(self) -> None:
        if time.time() - self._owner.renewed > _LATE_SECONDS:
            self._renew_once()
        if self._lost:
            raise UserError(
                f"{self._folder}: taken over by another process while this one, "
                f"{self._owner.describe()}, was stopped; it writes nothing more"
            )

    def release(self) -> None:
        self._over.set()
        self._thread.join()
        with suppress(OSError, StoreError):
            self._record.drop(self._owner)

    def _renew(self) -> None:
        while not self._over.wait(RENEW_SECONDS):
            self._renew_once()

    def _renew_once(self) -> None:
        with suppress(OSError, StoreError):  # a full disk or a silent store must not end us
            owner = replace(self._owner, renewed=time.time())
            if self._record.renew(owner):
                self._owner = owner
            else:
                self._lost = True


class _FileRecord:
    """The lease as a file, looked at and changed under a lock."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def take(self, owner: Owner) -> Owner | None:
        """Names `owner` in the lease, or gives the one who does not give way."""
        with _locked(self._path) as file:
            other = _read(file)
            if other is not None and not other.gives_way_to(owner):
                return other
            try:
                _write(file, owner)
            except OSError:  # a full disk: what is there now names nobody
                self._path.unlink()
                raise
        return None

    def renew(self, owner: Owner) -> bool:
        """Writes the owner's new time, if the lease is still its own."""
        with _locked(self._path) as file:
            mine = _is_of(owner, _read(file))
            if mine:
                _write(file, owner)
        return mine

    def drop(self, owner: Owner) -> None:
        """Removes the lease, if it is the owner's."""
        with _locked(self._path) as file:
            if _is_of(owner, _read(file)):
                self._path.unlink()


def _is_of(owner: Owner, other: Owner | None) -> bool:
    return other is not None and other.token == owner.token


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
    return Owner.from_bytes(os.pread(file, 1 << 16, 0))


def _write(file: int, owner: Owner) -> None:
    data = owner.to_bytes()
    os.pwrite(file, data, 0)
    os.ftruncate(file, len(data))
