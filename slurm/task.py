"""One process of a job whose batch script is one's own: an `unclip` command under srun.

`python -m slurm.task [--run RUN] train CONFIG …`: ranks meet, signals to save reach the command,
and a RUN is looked after, as in the jobs of `unclip launch`; see slurm/templates.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from slurm.process import as_process, run_command

_USAGE = (
    "usage: python -m slurm.task [--run RUN] COMMAND …, such as `train configs/tiny/prior.yaml`"
)


def main(words: list[str]) -> int:
    """The command; its exit code is the process's."""
    run = None
    if words[:1] == ["--run"] and len(words) > 1:
        run, words = Path(words[1]), words[2:]
    if not words or words[0].startswith("-"):
        print(_USAGE, file=sys.stderr)
        return 2
    command = ["-m", "unclip", *words]
    return as_process(os.environ, lambda: run_command(command, os.environ, run))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
