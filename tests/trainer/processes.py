"""Processes that tests start."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def environment(**more: str) -> dict[str, str]:
    """The environment of a process that a test starts."""
    alone = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    path = os.pathsep.join([str(ROOT), str(HERE)])
    told = {"PYTHONFAULTHANDLER": "1"}  # a process that crashes says where
    return {**alone, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **told, **more}


def free_port() -> int:
    """A port of the loopback interface that nobody has at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RankServer:
    """Starts ranks by forking (rank_server.py), one script after another."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "rank_server.py")],
            cwd=ROOT,
            env=environment(DS_ACCELERATOR="cpu"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        ranks: int,
        script: Path,
        arguments: Sequence[object],
        timeout: float = 400,
        imports: Sequence[str] = (),
    ) -> str:
        """What a script prints on several ranks; every one must end well.

        `imports` are slow ones that are made once and not by every rank.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        words = [str(argument) for argument in arguments]
        task = {
            "ranks": ranks,
            "script": str(script),
            "arguments": words,
            "timeout": timeout,
            "imports": list(imports),
        }
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        assert answer["codes"] == [0] * ranks, (answer["codes"], answer["errors"][-20000:])
        return str(answer["out"])

    def close(self) -> None:
        """End it; ranks that a test left behind end with it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)
