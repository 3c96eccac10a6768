"""The page's commands, run as they stand; only the folder is another one."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "slurm-testbed.md"
HERE = "/tmp/slurm"


def block(kind: str) -> str:
    found = re.search(rf"^```{kind}\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert found
    return found[1]


def run(command: list[str], folder: Path) -> str:
    """Runs it in the folder, with this Python and these packages; what it printed."""
    paths = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **paths},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slurm
def test_the_commands_do_what_the_page_says(
    slurm_installed: None, short_tmp: Path, tmp_path: Path
) -> None:
    bed = tempfile.mkdtemp(dir=short_tmp)
    script = block("bash").replace(HERE, bed)
    try:
        said = run(["bash", "-e", "-o", "pipefail", "-c", script], tmp_path)
    finally:
        run([sys.executable, "-m", "slurm.testbed", "down", "--dir", bed], tmp_path)
    assert re.search(r"low\*  +up +infinite +2 +idle n\[1-2\]", said)
    assert sorted(re.findall(r"^n\d$", said, re.MULTILINE)) == ["n1", "n1", "n2", "n2"]
    assert re.search(r"^\d+ +wrap +COMPLETED +0:0 +n\[1-2\]", said, re.MULTILINE)
    assert f"{bed}: up\n" in said


@pytest.mark.slurm
def test_the_example_for_tests_runs(slurm_installed: None, short_tmp: Path, tmp_path: Path) -> None:
    bed = tempfile.mkdtemp(dir=short_tmp)
    run([sys.executable, "-c", block("python").replace(HERE, bed)], tmp_path)
