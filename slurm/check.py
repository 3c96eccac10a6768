"""What can be known to go wrong in a stage before it runs: its config, and what it reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from base.errors import UserError
from base.source import SOURCES
from slurm.config import PrepareStage
from slurm.environment import with_code
from slurm.graph import Node
from slurm.pipeline import Pipeline


def require_inputs(pipeline: Pipeline) -> None:
    """See that what is prepared is there, as far as it lies in files.

    Raises:
        UserError: which is not.
    """
    for name, stage in pipeline.config.stages.items():
        for text in stage.inputs if isinstance(stage, PrepareStage) else ():
            if "://" not in text and not pipeline.at(text).exists():
                raise UserError(f"stages.{name}.inputs: {pipeline.at(text)}: is not there")


def check_configs(nodes: Iterable[Node]) -> None:
    """Have the trainer read the training configs of stages, in one process.

    Raises:
        UserError: a mistake, with its stage.
    """
    with tempfile.TemporaryDirectory() as folder:
        asked = {}
        for node in nodes:
            if node.kind == "train":
                for name, text in node.files.items():
                    (Path(folder) / name).write_text(text, encoding="utf-8")
                words = node.command[node.command.index("train") + 1 :]
                asked[node.name] = [word.replace("{frozen}", folder) for word in words]
        if asked:
            _ask_trainer(json.dumps(asked))


def _ask_trainer(asked: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "check-configs"],
        env=with_code(os.environ, str(SOURCES)),
        input=asked,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        reason = lines[-1].removeprefix("error: ") if lines else "the trainer cannot read configs"
        raise UserError(f"stages.{reason}")
