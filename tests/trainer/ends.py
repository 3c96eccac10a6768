"""A train command in this process, and what is left of it: ends.py FOLDER ARGUMENTS.

FOLDER/RANK.json tells how the command ended, whether a process group and which threads are left.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import torch.distributed as dist
import toy
import typer

from base.errors import UserError
from trainer.cli import app
from trainer.engine.processes import environment_rank


def main(folder: Path, arguments: list[str]) -> None:
    toy.register()
    try:
        typer.main.get_command(app).main(arguments, standalone_mode=False)
    except UserError as error:
        code = error.exit_code
    else:
        code = 0
    left = {
        "code": code,
        "group": dist.is_initialized(),
        "threads": [thread.name for thread in threading.enumerate()],
        "gloo": [name for name in system_threads() if "gloo" in name],
    }
    (folder / f"{environment_rank()}.json").write_text(json.dumps(left))


def system_threads() -> list[str]:
    """Names of this process's threads, those of C++ among them (Linux)."""
    return [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
