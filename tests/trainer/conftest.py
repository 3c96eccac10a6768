"""Fixtures of the trainer's tests."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

_HERE = Path(__file__).resolve().parent
if str(_HERE) not in sys.path:
    sys.path.insert(0, str(_HERE))

import toy  # noqa: E402 - siblings are found by the path above
from processes import ROOT, RankServer, environment  # noqa: E402

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
def rank_server() -> Iterator[RankServer]:
    """From where several ranks are started."""
    server = RankServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def deepspeed_ready(rank_server: RankServer) -> None:
    """DeepSpeed's communication extension, compiled once (about a minute) outside any time-out."""
    rank_server.run(1, _HERE / "deepspeed_ready.py", [], timeout=500)


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
def torchrun(
    deepspeed_ready: None, rank_server: RankServer
) -> Callable[[int, Path, Sequence[object]], str]:
    """Runs a script on several ranks, each as torchrun would have it, and gives what it prints."""
    return rank_server.run
