"""Where the parts of one testbed lie: everything of it is below its own folder."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from base.errors import UserError

# Of a Unix socket's path, in bytes. The longest are steps': spool/n64/n64_1234567.4294967291.
_LONGEST_PATH = 107
_LONGEST_BELOW = 40


@dataclass(frozen=True)
class Layout:
    """The paths of the testbed whose folder is `folder`, an absolute path."""

    folder: Path

    @staticmethod
    def of(folder: Path) -> Layout:
        """The layout below `folder`, wherever the current folder is.

        Raises:
            UserError: the path cannot hold Unix sockets, or stand in Slurm's files.
        """
        top = folder.expanduser().resolve()
        most = _LONGEST_PATH - _LONGEST_BELOW
        if len(str(top).encode()) > most:
            raise UserError(f"--dir: {top} is too long for Unix sockets; {most} bytes at most")
        if not all(letter.isalnum() or letter in "/._-+" for letter in str(top)):
            raise UserError(f"--dir: {top}: Slurm's files take letters, digits and /._-+ only")
        return Layout(top)

    @property
    def cluster(self) -> str:
        """The cluster's name, another one for each folder."""
        return f"tb{hashlib.sha256(str(self.folder).encode()).hexdigest()[:10]}"

    @property
    def record(self) -> Path:
        """What was started: pids, ports, shape."""
        return self.folder / "testbed.json"

    @property
    def lock(self) -> Path:
        """Held while one goes up or down."""
        return self.folder / "testbed.lock"

    @property
    def slurm_conf(self) -> Path:
        """What SLURM_CONF must name."""
        return self.folder / "slurm.conf"

    @property
    def slurmdbd_conf(self) -> Path:
        """Of the accounting daemon, which looks for it beside slurm.conf."""
        return self.folder / "slurmdbd.conf"

    @property
    def munge_key(self) -> Path:
        """The secret that every message is signed with."""
        return self.folder / "munge.key"

    @property
    def run(self) -> Path:
        """Sockets and pid files."""
        return self.folder / "run"

    @property
    def munge_socket(self) -> Path:
        return self.run / "munge.socket"

    @property
    def database_socket(self) -> Path:
        return self.run / "mariadb.socket"

    @property
    def database(self) -> Path:
        """MariaDB's data."""
        return self.folder / "database"

    @property
    def state(self) -> Path:
        """What slurmctld remembers over a restart."""
        return self.folder / "state"

    @property
    def spool(self) -> Path:
        """A folder for each slurmd."""
        return self.folder / "spool"

    @property
    def logs(self) -> Path:
        return self.folder / "log"

    def output(self, daemon: str) -> Path:
        """Where what a daemon prints goes; Slurm's daemons write NAME.log as well, with times."""
        return self.logs / f"{daemon}.out"

    def make(self) -> None:
        """Makes the folders that are not there.

        Raises:
            UserError: the folder holds what is not a testbed's.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.lock.exists() and (other := next(self.folder.iterdir(), None)):
            raise UserError(f"--dir: {self.folder} holds {other.name}, and is no testbed's")
        self.lock.touch()
        for path in (self.run, self.state, self.spool, self.logs):
            path.mkdir(exist_ok=True)
