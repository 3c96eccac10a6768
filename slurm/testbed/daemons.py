"""The daemons of a testbed: how each is started, and how to see that it serves."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from base.errors import UserError
from slurm.testbed.config import Machine
from slurm.testbed.layout import Layout
from slurm.testbed.packages import program
from slurm.testbed.ports import answers

SIGNER, DATABASE, ACCOUNTING, CONTROLLER = "munged", "mariadbd", "slurmdbd", "slurmctld"
SERVICES = (SIGNER, DATABASE, ACCOUNTING, CONTROLLER)  # in the order of their starts
_ASK_SECONDS = 10.0
_USABLE = ("idle", "mixed", "allocated", "completing")


@dataclass(frozen=True)
class Daemon:
    """A daemon in the foreground: the name it is recorded by, its command, whether it serves."""

    name: str
    command: Sequence[str]
    serves: Callable[[], bool]


def this_machine() -> Machine:
    """Slurm knows machines by their short names."""
    return Machine(socket.gethostname().partition(".")[0], pwd.getpwuid(os.geteuid()).pw_name)


def environment(layout: Layout) -> dict[str, str]:
    """With which the daemons and Slurm's commands find this testbed."""
    here = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    return here | {
        "SLURM_CONF": str(layout.slurm_conf),
        "MYSQL_UNIX_PORT": str(layout.database_socket),
    }


def ask(layout: Layout, *command: str) -> str | None:
    """What one of Slurm's commands prints; None where it fails or is silent for long."""
    with suppress(subprocess.TimeoutExpired):
        done = subprocess.run(
            [program(command[0]), *command[1:]],
            env=environment(layout),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_ASK_SECONDS,
        )
        if done.returncode == 0:
            return done.stdout
    return None


def munged(layout: Layout) -> Daemon:
    """Signs and checks what the others say to each other; makes its key at first."""
    if not layout.munge_key.exists():
        descriptor = os.open(layout.munge_key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(128))
    command = [
        program(SIGNER),
        "--foreground",
        "--force",  # folders above ours may be closed to others, which is no fault
        f"--key-file={layout.munge_key}",
        f"--socket={layout.munge_socket}",
        f"--pid-file={layout.run}/munged.pid",
        f"--seed-file={layout.run}/munged.seed",
        "--num-threads=2",
    ]
    sign = ("munge", "--no-input", f"--socket={layout.munge_socket}")
    return Daemon(SIGNER, command, lambda: ask(layout, *sign) is not None)


def mariadbd(layout: Layout) -> Daemon:
    """The database of the accounting, on a Unix socket alone; made at first.

    Raises:
        UserError: the database cannot be made.
    """
    user = this_machine().user
    if not (layout.database / "mysql").is_dir():
        _make_database(layout.database, user)
    command = [
        program(DATABASE),
        "--no-defaults",
        f"--user={user}",
        f"--datadir={layout.database}",
        f"--socket={layout.database_socket}",
        f"--pid-file={layout.run}/mariadbd.pid",
        "--skip-networking",
        "--innodb-log-file-size=16M",
        "--innodb-buffer-pool-size=64M",
        "--innodb-flush-log-at-trx-commit=2",
        "--innodb-lock-wait-timeout=900",
        "--innodb-use-native-aio=OFF",  # containers may forbid io_uring
    ]
    return Daemon(DATABASE, command, lambda: _listens(layout.database_socket))


def slurmdbd(layout: Layout) -> Daemon:
    """The accounting."""
    asked = ("sacctmgr", "--noheader", "list", "cluster")
    command = [program(ACCOUNTING), "-D"]
    return Daemon(ACCOUNTING, command, lambda: ask(layout, *asked) is not None)


def slurmctld(layout: Layout) -> Daemon:
    """The controller."""
    asked = ("sinfo", "--noheader")
    command = [program(CONTROLLER), "-D"]
    return Daemon(CONTROLLER, command, lambda: ask(layout, *asked) is not None)


def slurmd(layout: Layout, node: str, port: int) -> Daemon:
    """The node's daemon; it serves when the controller has heard of it."""

    def serves() -> bool:
        return answers(port) and is_usable(layout, node)

    return Daemon(node, [program("slurmd"), "-D", "-N", node], serves)


def is_usable(layout: Layout, node: str) -> bool:
    """Whether the controller gives jobs to the node."""
    return node_states(layout).get(node) in _USABLE


def node_states(layout: Layout) -> Mapping[str, str]:
    """Each node's state in Slurm's long form, such as `idle` or `down*`; none if nobody answers."""
    listing = ask(layout, "sinfo", "--noheader", "--Node", "--format=%N %T") or ""
    return dict(line.split() for line in listing.splitlines())


def _make_database(folder: Path, user: str) -> None:
    """A new database that knows `user` by the socket; all of it or nothing."""
    making = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(mode=0o700)
    command = [
        program("mariadb-install-db"),
        "--no-defaults",
        f"--user={user}",
        f"--datadir={making}",
        "--skip-test-db",
        "--auth-root-authentication-method=socket",
        f"--auth-root-socket-user={user}",
        "--innodb-log-file-size=16M",
        "--innodb-use-native-aio=OFF",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        said = " | ".join((done.stdout + done.stderr).strip().splitlines()[-5:])
        raise UserError(f"mariadb-install-db failed: {said}")
    making.rename(folder)


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
