"""The demo at micro scale: a complete report, and refusals in one line."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
MICRO = ROOT / "configs" / "micro"
RUNS = ("clip", "prior", "decoder", "up64", "up256")
SCORES = {"background", "relation", "colour", "shape", "single_all", "pair_all"}


def start(out: Path, *arguments: object) -> subprocess.Popen[str]:
    """The demo in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "unclip", "demo", "--config", MICRO, "--out", out, "--json"]
        + [str(argument) for argument in arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The report of a demo that ends well."""
    output, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors[-4000:]
    report: dict[str, Any] = json.loads(output)
    return report


def comparable(report: dict[str, Any]) -> dict[str, Any]:
    """The part of a report that does not depend on when and how fast."""
    return {key: value for key, value in report.items() if key != "seconds"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A demo that nothing interrupted, and its report."""
    out = tmp_path_factory.mktemp("demo") / "whole"
    return out, finish(start(out))


def test_the_report_for_programs(whole: tuple[Path, dict[str, Any]]) -> None:
    out, report = whole
    assert json.loads((out / "report.json").read_text()) == report
    assert set(report["scores"]) == SCORES
    for score in report["scores"].values():
        assert {"seen", "unseen", "count"} <= set(score)
        assert 0 <= score["seen"] <= 1
    assert report["scores"]["background"]["count"] == 18
    assert {"true_embedding", "foreign_embedding", "no_embedding", "no_text"} <= set(
        report["controls"]
    )
    assert -1 <= report["prior_cosine"] <= 1
    assert 0 <= report["prior_recall_at_1"] <= 1
    assert set(RUNS) <= set(report["seconds"])
    assert report["versions"]["python"].startswith("3.")


def test_the_report_for_people(whole: tuple[Path, dict[str, Any]]) -> None:
    out, _ = whole
    page = (out / "report.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html>")
    with Image.open(out / "pictures.png") as sheet:
        assert sheet.width > 4 * 256
    assert (out / "cascade.yaml").is_file()
    for run in RUNS:
        assert (out / run / "latest").is_file()


def test_again_does_nothing_again(whole: tuple[Path, dict[str, Any]]) -> None:
    out, report = whole
    watched = [*out.glob("*/checkpoints/*/manifest.json"), *out.glob("data/*/shards/*.tar")]
    before = {path: path.stat().st_mtime_ns for path in watched}
    assert len(before) >= len(RUNS) + 3
    assert comparable(finish(start(out))) == comparable(report)
    assert {path: path.stat().st_mtime_ns for path in watched} == before


def test_a_second_demo_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    first = start(out)
    while first.poll() is None and not (out / "unclip.lock").exists():
        time.sleep(0.01)
    _, errors = (second := start(out)).communicate()
    assert first.poll() is None
    first.kill()
    first.communicate()
    assert second.returncode == 2
    assert f"pid {first.pid}" in errors
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "absent", "no such file or folder"),
        (lambda folder: folder, "empty"),
        (lambda folder: _file(folder / "a.jpg", b"x").parent, "no file has a caption"),
    ],
)
def test_data_that_cannot_be_used(make: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    process = start(tmp_path / "out", "--data", make(tmp_path / "data"))
    output, errors = process.communicate()
    assert process.returncode in (2, 3)
    assert message in errors
    assert errors.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in errors
    assert output == ""


def _file(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
