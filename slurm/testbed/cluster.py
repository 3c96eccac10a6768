"""A testbed as an object: up, down, status; and nodes and controllers that fail."""

from __future__ import annotations

import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from base.errors import UserError
from base.files import write_atomic
from slurm.testbed import daemons
from slurm.testbed.config import slurm_conf, slurmdbd_conf
from slurm.testbed.daemons import ACCOUNTING, CONTROLLER, Daemon
from slurm.testbed.layout import Layout
from slurm.testbed.node_processes import kill_all
from slurm.testbed.packages import program, require_packages
from slurm.testbed.ports import free_ports
from slurm.testbed.processes import Process, end, kill, spawn
from slurm.testbed.record import Record, locked, read_record, write_record
from slurm.testbed.shape import Shape

_START_SECONDS = 90.0  # for each daemon
_END_SECONDS = 15.0  # then it is killed
_RUN_SECONDS = 60.0
_POLL_SECONDS = 0.1
_LINES = 3  # of a log, for whoever asks why


@dataclass(frozen=True)
class Status:
    """What runs: each daemon's pid, None where it does not, and Slurm's word on each node."""

    up: bool
    folder: Path
    slurm_conf: Path
    daemons: dict[str, int | None]
    nodes: dict[str, str]


class Cluster:
    """The testbed in a folder, whether it is up or not; any process may take hold of it."""

    def __init__(self, folder: Path) -> None:
        self.layout = Layout.of(folder)

    @property
    def environment(self) -> dict[str, str]:
        """With which Slurm's commands, and ours, use this testbed."""
        return daemons.environment(self.layout)

    def up(self, shape: Shape) -> bool:
        """Starts everything and waits until all nodes are idle; False where it was up before.

        What an earlier testbed of this folder remembers, such as its jobs' history, is kept.

        Raises:
            UserError: a daemon does not start, and the line has the end of its log; or the folder
                has another testbed up, or half of one. Nothing is left running.
        """
        require_packages()
        self.layout.make()
        with locked(self.layout):
            if self.layout.record.exists() and (alive := read_record(self.layout)).alive:
                self._require_same(alive, shape)
                return False
            record = self._configure(shape)
            try:
                self._start_all(record)
            except BaseException:
                self._stop_all()
                raise
        return True

    def down(self) -> bool:
        """Stops every daemon, and kills what jobs are running; False where nothing was.

        Raises:
            UserError: no testbed is there, or something outlives SIGKILL.
        """
        read_record(self.layout)
        with locked(self.layout):
            return self._stop_all()

    def status(self) -> Status:
        """Looks at the processes, and asks Slurm about the nodes.

        Raises:
            UserError: no testbed is there.
        """
        record = read_record(self.layout)
        alive = record.alive
        return Status(
            up=not record.lacking,
            folder=self.layout.folder,
            slurm_conf=self.layout.slurm_conf,
            daemons={name: alive[name].pid if name in alive else None for name in record.wanted},
            nodes=dict(daemons.node_states(self.layout)) if CONTROLLER in alive else {},
        )

    def run(self, *command: str) -> str:
        """What one of Slurm's commands prints.

        Raises:
            UserError: it failed; with what it said.
        """
        done = subprocess.run(
            [program(command[0]), *command[1:]],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_RUN_SECONDS,
        )
        if done.returncode:
            raise UserError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def kill_node(self, name: str) -> None:
        """Ends a node as a power cut does: its daemon and its jobs' processes, without a word."""
        with locked(self.layout):
            self._require_running(name)
            kill_all(self.layout, name)

    def start_node(self, name: str) -> None:
        """Starts a node's daemon again."""
        with locked(self.layout):
            record = read_record(self.layout)
            self._start(record, daemons.slurmd(self.layout, name, record.ports[name]))

    def kill_controller(self) -> None:
        """Ends slurmctld at once; jobs go on.

        It saves what it knows every few seconds: jobs that it was given since then are lost.
        """
        with locked(self.layout):
            kill(self._require_running(CONTROLLER))

    def start_controller(self) -> None:
        """Starts slurmctld again, with what it has saved; waits until it knows the nodes again."""
        with locked(self.layout):
            record = self._start(read_record(self.layout), daemons.slurmctld(self.layout))
        for name in record.shape.names:
            if name in record.alive:
                _wait_until(partial(daemons.is_usable, self.layout, name), f"{name} is not back")

    def _require_same(self, record: Record, shape: Shape) -> None:
        if record.lacking:
            lacking = ", ".join(record.lacking)
            raise UserError(f"{self.layout.folder}: half up, without {lacking}; down it first")
        if record.shape != shape:
            raise UserError(
                f"{self.layout.folder}: is up with {record.shape.nodes} nodes, and other settings "
                "than these; down it first"
            )

    def _configure(self, shape: Shape) -> Record:
        layout, machine = self.layout, daemons.this_machine()
        ports = free_ports([CONTROLLER, ACCOUNTING, *shape.names])
        write_atomic(layout.slurm_conf, slurm_conf(layout, shape, ports, machine))
        write_atomic(layout.slurmdbd_conf, slurmdbd_conf(layout, ports, machine))
        layout.slurmdbd_conf.chmod(0o600)  # slurmdbd insists
        record = Record(shape, ports)
        write_record(layout, record)
        return record

    def _start_all(self, record: Record) -> None:
        for make in (daemons.munged, daemons.mariadbd, daemons.slurmdbd, daemons.slurmctld):
            record = self._start(record, make(self.layout))
        self._enrol(daemons.this_machine().user)
        for name in record.shape.names:
            record = self._start(record, daemons.slurmd(self.layout, name, record.ports[name]))
        _wait_until(lambda: daemons.ask(self.layout, "sacct") is not None, "sacct has no answer")

    def _enrol(self, user: str) -> None:
        """Limits need users with an account: without one Slurm takes no jobs. It knows root."""
        known = ("--noheader", "--parsable2", "show", "associations", f"users={user}")
        if not self.run("sacctmgr", *known).strip():
            self.run("sacctmgr", "--immediate", "add", "user", user, "account=root")

    def _start(self, record: Record, daemon: Daemon) -> Record:
        """Starts a daemon and waits until it serves."""
        if daemon.name in record.alive:
            raise UserError(f"{daemon.name} runs already")
        output = self.layout.output(daemon.name)
        process = spawn(
            daemon.command,
            self.environment,
            output,
            lambda process: write_record(self.layout, record.having(daemon.name, process)),
        )

        def serves() -> bool:
            if not process.alive:
                raise UserError(f"{daemon.name} ended at once; {_tail(output)}")
            return daemon.serves()

        _wait_until(serves, f"{daemon.name} does not serve", output)
        return record.having(daemon.name, process)

    def _require_running(self, name: str) -> Process:
        running = read_record(self.layout).alive
        if name not in running:
            raise UserError(f"{name} does not run")
        return running[name]

    def _stop_all(self) -> bool:
        record = read_record(self.layout)
        running = record.alive
        slurm = [CONTROLLER, *record.shape.names]
        left = end([each for name, each in running.items() if name in slurm], _END_SECONDS)
        for name in record.shape.names:
            left += kill_all(self.layout, name)
        for name in reversed([name for name in running if name not in slurm]):
            left += end([running[name]], _END_SECONDS)
        if left:
            pids = ", ".join(str(process.pid) for process in left)
            raise UserError(f"{self.layout.folder}: not even SIGKILL ended these pids: {pids}")
        return bool(running)


@contextmanager
def running(folder: Path, shape: Shape | None = None) -> Iterator[Cluster]:
    """A testbed for the length of a block."""
    cluster = Cluster(folder)
    cluster.up(shape or Shape())
    try:
        yield cluster
    finally:
        cluster.down()


def _wait_until(holds: Callable[[], bool], otherwise: str, log: Path | None = None) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            why = f"; {_tail(log)}" if log else ""
            raise UserError(f"{otherwise} after {_START_SECONDS:.0f} s{why}")
        time.sleep(_POLL_SECONDS)


def _tail(log: Path) -> str:
    with log.open(errors="replace") as file:
        lines = [line.strip() for line in deque(file, maxlen=_LINES)]
    return f"the end of {log}: {' | '.join(lines) or 'empty'}"
