"""`python -m slurm.testbed`: a Slurm of several nodes on one machine."""

import base.command
from slurm.testbed.cli import app

if __name__ == "__main__":
    base.command.run(app)
