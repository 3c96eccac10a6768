"""`python -m trainer`: the trainer's commands without the front door."""

import base.command
from trainer.cli import app

if __name__ == "__main__":
    base.command.run(app)
