"""The documents' commands, run as they stand: page by page, in a copy whose configs are micro.

Counts of scenes and samples are cut down, so that it takes minutes, and what is fetched comes from
loopback; nothing else is changed.
"""

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from warm import warm_program

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("base", "data_pipeline", "slurm", "trainer", "unclip")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_RUN = re.compile(r"(unclip|torchrun|echo|python -c) ")


def lines_of(page: Path) -> Iterator[str]:
    """The lines of a page's bash blocks that run a command of ours, or make a file for one.

    `make` builds an environment of its own; its targets call what is run here.
    """
    for block in re.finditer(r"^```bash\n(.*?)^```", page.read_text(), re.DOTALL | re.M):
        for line in block[1].replace("\\\n", " ").splitlines():
            if _RUN.match(line):
                yield line


def write_configs(page: Path, folder: Path) -> None:
    """Puts a page's YAML blocks that begin with `# NAME.yaml` into files of that name."""
    for block in re.finditer(r"^```yaml\n# (\w+\.yaml)\n(.*?)^```", page.read_text(), re.S | re.M):
        (folder / block[1]).write_text(block[2])


def smaller(line: str) -> str:
    """The line with numbers of scenes and samples that a test can wait for."""
    line = re.sub(r"--count (\d{3,})", "--count 60", line)
    if "laion.parquet" in line:  # it lies on loopback here
        line += " --set fetch.allow_private=true --set fetch.attempts=1"
    return re.sub(r"train\.samples=\d+", "train.samples=256", line)


PAGES_THAT_RUN = [page for page in PAGES if any(lines_of(page))]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The packages and configs, micro in the place of tiny, and one finished demo."""
    place = tmp_path_factory.mktemp("project")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, place / package)
    shutil.copytree(ROOT / "configs" / "micro", place / "configs" / "tiny")
    for path in (place / "configs" / "tiny").iterdir():
        path.write_text(path.read_text().replace("runs/micro", "runs/tiny"))
    programs = place / "bin"
    programs.mkdir()
    for name, words in (("torchrun", "-m torch.distributed.run"), ("python", "")):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        program.chmod(0o755)
    with warm_program(programs / "unclip", "unclip", place):
        run("unclip demo --out runs/demo", place, place)
        run("unclip data synth photos --count 40 --size 256", place, place)
        yield place


def run(line: str, folder: Path, project: Path) -> None:
    paths = {"PATH": f"{project / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(project)}
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env={**os.environ, **paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{line}\n{done.stderr[-3000:]}"


def test_the_pages_that_run() -> None:
    names = {page.stem for page in PAGES_THAT_RUN}
    assert {"README", "data", "dataset", "demo", "run", "training", "config"} <= names
    assert smaller("unclip data synth x --count 10000 --seed 1") == (
        "unclip data synth x --count 60 --seed 1"
    )


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", PAGES_THAT_RUN, ids=lambda page: page.stem)
def test_a_page_s_commands_run_in_order(page: Path, project: Path, tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(project / "configs")
    for name in ("runs/demo", "runs/tiny"):
        shutil.copytree(project / "runs" / "demo", tmp_path / name)
    for name in ("photos", "path/to/pairs"):
        shutil.copytree(project / "photos", tmp_path / name)
    write_configs(page, tmp_path)
    with web_of(tmp_path / "photos", tmp_path / "laion.parquet"):
        for line in lines_of(page):
            run(smaller(line), tmp_path, project)


@contextmanager
def web_of(folder: Path, table: Path) -> Iterator[None]:
    """A web server for the pictures of a folder, and a table like LAION's that leads there.

    Every address ending in 7.jpg fails at first: there is something to try again.
    """
    failed = set[str]()

    class Web(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.endswith("7.jpg") and self.path not in failed:
                failed.add(self.path)
                self.send_error(503)
            else:
                super().do_GET()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Web, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = f"http://127.0.0.1:{server.server_port}"
        pictures = sorted(path.relative_to(folder) for path in folder.rglob("*.jpg"))
        urls = [f"{here}/{path}" for path in pictures]
        captions = [(folder / path).with_suffix(".txt").read_text() for path in pictures]
        columns = {"aesthetic": 5.5, "punsafe": 0.1, "license": "cc0", "source": "web"}
        more = {name: [value] * len(urls) for name, value in columns.items()}
        pq.write_table(pa.table({"URL": urls, "TEXT": captions, **more}), table)
        yield
        server.shutdown()
