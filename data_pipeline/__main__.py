"""`python -m data_pipeline`: the same commands as `unclip data`."""

import base.command
from data_pipeline.cli import app

if __name__ == "__main__":
    base.command.run(app)
