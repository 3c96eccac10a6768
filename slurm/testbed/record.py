"""What of a testbed is written down: its shape, its ports, and the processes that were started."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace

from base.config import parse_config
from base.errors import UserError
from base.files import read_json, write_json
from slurm.testbed.daemons import SERVICES
from slurm.testbed.layout import Layout
from slurm.testbed.processes import Process
from slurm.testbed.shape import Shape

_VERSION = 1


@dataclass(frozen=True)
class Record:
    """Processes by the names of daemons; those of daemons that have ended too."""

    shape: Shape
    ports: dict[str, int]
    processes: dict[str, Process] = field(default_factory=dict)

    @property
    def wanted(self) -> list[str]:
        """The daemons of a whole testbed, in the order of their starts."""
        return [*SERVICES, *self.shape.names]

    @property
    def lacking(self) -> list[str]:
        """Those that do not run: they have ended, or never began."""
        alive = self.alive
        return [name for name in self.wanted if name not in alive]

    @property
    def alive(self) -> dict[str, Process]:
        """The daemons that run."""
        return {name: each for name, each in self.processes.items() if each.alive}

    def having(self, name: str, process: Process) -> Record:
        """The same with one daemon more, or in the place of an earlier one."""
        return replace(self, processes={**self.processes, name: process})


def write_record(layout: Layout, record: Record) -> None:
    """Takes the place of what was written before."""
    value = {
        "version": _VERSION,
        "cluster": layout.cluster,
        "shape": record.shape.model_dump(),
        "ports": record.ports,
        "processes": {name: asdict(process) for name, process in record.processes.items()},
    }
    write_json(layout.record, value)


def read_record(layout: Layout) -> Record:
    """What was written.

    Raises:
        UserError: there is no testbed, or the file is not what we write.
    """
    if not layout.record.exists():
        raise UserError(f"{layout.folder}: no testbed is there")
    value = read_json(layout.record)
    try:
        return Record(
            shape=parse_config(value["shape"], Shape, str(layout.record)),
            ports=dict(value["ports"]),
            processes={name: Process(**each) for name, each in value["processes"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{layout.record}: not what `up` writes there") from error


@contextmanager
def locked(layout: Layout) -> Iterator[None]:
    """Keeps others from starting or stopping anything of this testbed.

    Raises:
        UserError: somebody else is at it.
    """
    with layout.lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{layout.folder}: another up or down is at work there") from error
        yield
