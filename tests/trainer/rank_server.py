"""Runs scripts on several ranks, as torchrun does, without a start of Python for each of them.

The ranks are forked from this process, which has torch and DeepSpeed imported: a rank begins in a
moment, and not after seconds. Standard input has one JSON object a line: {"ranks", "script",
"arguments", "timeout", "imports"}, the last what these ranks need besides; the answer to each is
one line on standard output: {"codes", "out", "errors"}, the exit code of each rank and all that
they printed. The ranks end like any process, with the interpreter's own last steps.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # optimizers do
import torch.utils.tensorboard  # seconds in every rank otherwise
from processes import free_port

import trainer.loop  # noqa: F401
from trainer.engine.deepspeed import _import_quietly

_NOISE = ("nanobind: ", " - leaked ", " - ... skipped", "See https://nanobind")
_PATIENCE = 20.0  # seconds for a rank to notice that another failed


def serve() -> int:
    """Answer until nobody asks any more; in a forked rank the exit code of its script."""
    answers = os.dup(1)  # what ranks print goes elsewhere
    for line in sys.stdin:
        task, folder = json.loads(line), Path(tempfile.mkdtemp(prefix="ranks-"))
        for name in task["imports"]:
            importlib.import_module(name)
        gc.freeze()  # a rank's own rounds need not visit, and so copy, what all have
        children, port = [], free_port()
        for rank in range(task["ranks"]):
            child = os.fork()
            if child == 0:
                os.close(answers)
                return be_rank(rank, port, task, folder)
            children.append(child)
        answer = {"codes": wait(children, task["timeout"]), **printed(folder)}
        shutil.rmtree(folder)
        os.write(answers, json.dumps(answer).encode() + b"\n")
    os._exit(0)  # what libraries have to say at an interpreter's end is not for a terminal of tests


def be_rank(rank: int, port: int, task: dict[str, Any], folder: Path) -> int:
    """Run the script as one of its ranks, in a group with what it starts itself."""
    os.setpgid(0, 0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "out"), (2, "errors")):
        os.dup2(os.open(folder / f"{name}{rank}", os.O_WRONLY | os.O_CREAT), number)
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
    os.environ.update({"RANK": str(rank), "WORLD_SIZE": str(task["ranks"]), **meeting})
    sys.argv = [task["script"], *task["arguments"]]
    runpy.run_path(task["script"], run_name="__main__")
    return 0


def wait(children: list[int], timeout: float) -> list[int]:
    """The exit code of each, or below zero the signal that ended it; none outlives a failure."""
    codes: dict[int, int] = {}
    end = time.monotonic() + timeout
    try:
        while len(codes) < len(children) and time.monotonic() < end:
            for child in set(children) - set(codes):
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    codes[child] = os.waitstatus_to_exitcode(status)
                    if codes[child]:
                        end = min(end, time.monotonic() + _PATIENCE)
            time.sleep(0.01)
    finally:
        for child in set(children) - set(codes):
            with suppress(ProcessLookupError):  # it has no group yet
                os.killpg(child, signal.SIGKILL)
            os.kill(child, signal.SIGKILL)
            codes[child] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return [codes[child] for child in children]


def printed(folder: Path) -> dict[str, str]:
    """What all ranks printed, but for what a library has to say at the interpreter's end."""
    found = {}
    for name in ("out", "errors"):
        texts = [path.read_text(errors="replace") for path in sorted(folder.glob(f"{name}*"))]
        lines = [line for text in texts for line in text.splitlines(keepends=True)]
        found[name] = "".join(line for line in lines if not line.startswith(_NOISE))
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    _import_quietly(torch.device("cpu"))
    sys.exit(serve())
