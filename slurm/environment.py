"""The environment in which code runs that was frozen: it, and nothing of the working directory."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from base.errors import UserError


def with_code(environment: Mapping[str, str], code: str) -> dict[str, str]:
    """The variables, with modules taken from `code` first, then from where they were.

    `python -m` would put the working directory before both, which may be a checkout.
    """
    paths = [code, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    path = os.pathsep.join(dict.fromkeys(paths))
    return {**environment, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def leave_array(environment: MutableMapping[str, str]) -> None:
    """Take out what tells of an array of jobs, for those that are launched from one of its jobs.

    Slurm sets it for elements of arrays alone, so that any other job would be taken for that one.
    """
    for name in [name for name in environment if name.startswith("SLURM_ARRAY_")]:
        del environment[name]


def require_safe_path() -> None:
    """See that Python will not take code from the working directory.

    Raises:
        UserError: it would, since only Python 3.11 knows PYTHONSAFEPATH.
    """
    if sys.version_info < (3, 11) and Path("slurm/environment.py").is_file():
        raise UserError(
            f"Python 3.{sys.version_info[1]} would run the code in {Path.cwd()} and not what is "
            "frozen: launch from another folder, or with Python 3.11 or later"
        )
