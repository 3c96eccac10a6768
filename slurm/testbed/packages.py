"""Slurm's programs: found, or installed as Debian packages where they lack."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable

from base.errors import UserError

_PACKAGES = {
    "munged": "munge",
    "munge": "munge",
    "mariadbd": "mariadb-server",
    "mariadb-install-db": "mariadb-server",
    "slurmdbd": "slurmdbd",
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
    "scontrol": "slurm-wlm",
}
_PLACES = ("/usr/sbin", "/sbin", "/usr/bin")  # daemons are not on the PATH of everybody
_INSTALL_SECONDS = 900


def find(program: str) -> str | None:
    """The program's path."""
    places = os.pathsep.join((os.environ.get("PATH", ""), *_PLACES))
    return shutil.which(program, path=places)


def program(name: str) -> str:
    """The path of a program that is known to be there."""
    found = find(name)
    if found is None:
        raise UserError(f"{name} is not installed")
    return found


def lacking() -> list[str]:
    """The packages whose programs are not on this machine."""
    return sorted({package for name, package in _PACKAGES.items() if find(name) is None})


def require_packages() -> None:
    """Installs what lacks, which only root can, and only on Debian and its like.

    Raises:
        UserError: they cannot be installed here; the line says how to.
    """
    packages = lacking()
    if not packages:
        return
    command = f"apt-get install --no-install-recommends {' '.join(packages)}"
    if shutil.which("apt-get") is None:
        raise UserError(f"not installed: {', '.join(packages)}, and this is no Debian: no apt-get")
    if os.geteuid() != 0:
        raise UserError(f"not installed: {', '.join(packages)}; as root: {command}")
    print(f"installing {', '.join(packages)} ...", file=sys.stderr, flush=True)
    _apt_get(["update"])
    _apt_get(["install", "-y", "--no-install-recommends", *packages])
    if left := lacking():
        raise UserError(f"apt-get installed {', '.join(left)}, whose programs are not there")


def _apt_get(arguments: Iterable[str]) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(
        ["apt-get", "-q", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_INSTALL_SECONDS,
    )
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise UserError(f"apt-get {' '.join(arguments)}: {said[-1] if said else 'failed'}")
