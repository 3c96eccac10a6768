"""Two processes never work in the same folder: the second says who has it, and touches nothing."""

import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOLD = (
    "import sys; from base.lease import Lease\n"
    "with Lease(sys.argv[1]): print('held', flush=True); sys.stdin.read()"
)
TRAIN = ROOT / "configs/micro/up64.yaml"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What each command needs to get as far as its lease."""
    folder = tmp_path / "in use"
    folder.mkdir()
    (folder / "cascade.yaml").write_text("clip: c\nprior: {run: p}\ndecoder: {run: d}\n")
    (folder / "a.jpg").write_bytes(b"x")
    (folder / "a.txt").write_text("x")
    fields = '"version": 1, "input": 1, "kept": 1, "rejected": 0, "shards": 1, "image_size": 256'
    (folder / "dataset.json").write_text(f'{{{fields}, "plan_fingerprint": "0", "clip": null}}')
    (folder / "plan").mkdir()
    (folder / "plan/plan.parquet").write_bytes(b"")
    return folder


@pytest.fixture
def holder(folder: Path) -> Iterator[int]:
    """The process id of somebody who works in the folder."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process.pid
        process.communicate("")


@pytest.mark.parametrize(
    "command",
    [
        "data synth {0} --count 8",
        "data prepare {0} --out {0}",
        "data embed {0} --clip random:0",
        "train {1} --set out={0}",
        "generate text {0} 'a red circle' --out {0}",
        "demo --out {0}",
    ],
)
def test_who_has_it_is_named(command: str, folder: Path, holder: int) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    words = [word.format(folder, TRAIN) for word in shlex.split(command)]
    done = subprocess.run(
        [sys.executable, "-m", "unclip", *words], capture_output=True, text=True, cwd=ROOT
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{folder}: in use by host " in done.stderr
    assert f"pid {holder}" in done.stderr
    assert done.stderr.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
