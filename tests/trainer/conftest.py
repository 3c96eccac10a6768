"""Fixtures of the trainer's tests."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

_HERE = Path(__file__).resolve().parent
if str(_HERE) not in sys.path:
    sys.path.insert(0, str(_HERE))

import toy  # noqa: E402 - siblings are found by the path above
from processes import ROOT, environment  # noqa: E402

SIZES = (7, 0, 9, 11, 5)  # samples a shard; nothing was kept of the second


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _toy_stage() -> None:
    toy.register()


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DATASET of 32 blots in 5 shards, one of them empty."""
    return toy.write_dataset(tmp_path_factory.mktemp("toy") / "dataset", SIZES)


@pytest.fixture(scope="session")
def deepspeed_ready() -> None:
    """DeepSpeed's communication extension, compiled once (about a minute) outside any time-out."""
    code = (
        "import os; os.environ['DS_ACCELERATOR']='cpu';"
        "from torch import device, nn;"
        "from trainer.config import OptimConfig;"
        "from trainer.engine.base import Setup;"
        "from trainer.engine.deepspeed import DeepSpeedEngine as E;"
        "from trainer.engine.processes import group_scope;"
        "scope = group_scope(); scope.__enter__();"
        "E(nn.Linear(2, 2), OptimConfig(), Setup('fp32', 1, lambda w: 1), device('cpu')).close();"
        "scope.__exit__(None, None, None)"
    )
    subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), check=True, timeout=500
    )


@pytest.fixture(scope="session")
def command() -> Callable[..., "subprocess.Popen[str]"]:
    """Starts the trainer's command in a process of its own, with the toy among its stages."""

    def start(*arguments: object) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, str(_HERE / "toy.py"), *map(str, arguments)],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture(scope="session")
def torchrun(deepspeed_ready: None) -> Callable[[int, Path, Sequence[object]], str]:
    """Runs a script on several ranks and gives its standard output."""

    def run(ranks: int, script: Path, arguments: Sequence[object]) -> str:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--standalone",
                f"--nproc-per-node={ranks}",
                str(script),
                *map(str, arguments),
            ],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    return run
