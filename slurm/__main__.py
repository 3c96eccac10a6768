"""`python -m slurm`: the launcher alone."""

import base.command
from slurm.cli import app

if __name__ == "__main__":
    base.command.run(app)
