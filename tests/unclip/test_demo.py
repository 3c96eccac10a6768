"""The demo at micro scale: whatever interrupts it, the same command ends with the same report."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image
from sessions import members

from base.command import line_and_code
from base.errors import UserError
from unclip.demo.run import run_demo
from unclip.demo.summary import summary

ROOT = Path(__file__).resolve().parents[2]
MICRO = ROOT / "configs" / "micro"
RUNS = ("clip", "prior", "decoder", "up64", "up256")
STAGES = ("corpus", "prepare", "clip", "embed", *RUNS[1:], "pictures", "report")
SCORES = {"background", "relation", "colour", "shape", "single_all", "pair_all"}
CONTROLS = {"prior", "true_embedding", "foreign_embedding", "no_embedding", "no_text"}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


class Demo:
    """The demo in a session of its own, as a terminal starts it."""

    def __init__(self, out: Path, *arguments: object) -> None:
        self.log = out.parent / f"{out.name}.{time.monotonic_ns()}.log"
        command = [sys.executable, "-m", "unclip", "demo", "--config", MICRO, "--out", out]
        with self.log.open("w") as errors:
            self.process = subprocess.Popen(
                [str(part) for part in (*command, "--json", *arguments)],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )

    @property
    def errors(self) -> str:
        """What it has told so far."""
        return self.log.read_text()

    def report(self) -> dict[str, Any]:
        """The report of a demo that ends well."""
        output, _ = self.process.communicate(timeout=1500)
        assert self.process.returncode == 0, self.errors[-4000:]
        report: dict[str, Any] = json.loads(output)
        return report

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something to happen while it runs."""
        deadline = time.monotonic() + 900
        while not condition():
            assert self.process.poll() is None, self.errors[-4000:]
            assert time.monotonic() < deadline, self.errors[-4000:]
            time.sleep(0.005)

    def until_stage(self, stage: str) -> None:
        self.until(lambda: f"] {stage}\n" in self.errors)

    def end(self, number: signal.Signals) -> int:
        """Signal it, as a terminal or a scheduler does; its exit code."""
        if number is signal.SIGINT:
            os.killpg(self.process.pid, number)  # Ctrl-C reaches everything on the terminal
        else:
            self.process.send_signal(number)
        self.process.communicate(timeout=300)
        return self.process.returncode

    def wait_for_children(self) -> None:
        """Until nothing is left of what it started."""
        deadline = time.monotonic() + 300
        while left := members(self.process.pid):
            assert time.monotonic() < deadline, f"still there: {left}"
            time.sleep(0.05)


def comparable(report: dict[str, Any]) -> dict[str, Any]:
    """The part of a report that does not depend on when and how fast."""
    return {key: value for key, value in report.items() if key != "seconds"}


def results(out: Path) -> dict[str, str]:
    """SHA-256 of corpus, data, weights of every checkpoint, and pictures.

    Plans are left out: they name the inputs by their paths.
    """
    patterns = ("input/**/*", "data/*/shards/*", "data/*/metadata/*", "data/*/rejected/*")
    patterns += ("data/*/*_emb/*", "*/checkpoints/*/slices/*", "*/latest", "clip/exports/**/*")
    patterns += ("pictures/*", "pictures.png", "cascade.yaml")
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for pattern in patterns
        for path in out.glob(pattern)
        if path.is_file()
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A demo that nothing interrupted, and its report."""
    out = tmp_path_factory.mktemp("whole") / "demo"
    demo = Demo(out)
    report = demo.report()
    told = [line.split()[1] for line in demo.errors.splitlines() if line.startswith("[")]
    assert told == list(STAGES)
    return out, report


def test_the_report_for_programs(whole: tuple[Path, dict[str, Any]]) -> None:
    out, report = whole
    kept = json.loads((out / "report.json").read_text())
    assert {**kept, "seconds": None} == {**report, "seconds": None}  # each call adds its time
    assert set(report["scores"]) == SCORES
    for score in report["scores"].values():
        assert {"seen", "unseen", "count"} <= set(score)
        assert 0 <= score["seen"] <= 1
    assert report["scores"]["background"]["count"] == 18
    assert report["beyond"]["crowd"]["count"]["count"] == 4
    assert report["beyond"]["sign"]["word"]["count"] == 4
    assert {"background", "colour", "letters", "sign_all"} <= set(report["beyond"]["sign"])
    assert all(0 <= v["right"] <= 1 for found in report["beyond"].values() for v in found.values())
    assert set(report["controls"]) == CONTROLS | {"count"}
    assert -1 <= report["prior_cosine"] <= 1
    assert 0 <= report["prior_recall_at_1"] <= 1
    text = summary(report)
    background = report["scores"]["background"]["seen"]
    assert f"{background:.1%}" in next(li for li in text.splitlines() if "background" in li)
    assert f"up256: {report['upsamplers']['up256']['psnr']:.2f} dB" in text
    assert "crowd, which training does not show: " in text
    assert text.splitlines()[-1].startswith(
        f"made with configs/micro on {report['versions']['device']}"
    )
    assert set(report["seconds"]) == {*STAGES[:-1], "total"}
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
    assert comparable(Demo(out).report()) == comparable(report)
    assert {path: path.stat().st_mtime_ns for path in watched} == before


MOMENTS = (  # a stage, and a file that appears while it is at work
    ("corpus", "input/train/.work"),
    ("prepare", "data/train/plan/plan.parquet"),
    ("clip", "clip/checkpoints/000000000064/manifest.json"),
    ("embed", "data/train/unclip.lock"),
    ("prior", "prior/checkpoints/000000000064/manifest.json"),
    ("decoder", "decoder/config.yaml"),
    ("up64", "up64/checkpoints/*"),
    ("up256", "up256/config.yaml"),
    ("pictures", "pictures"),  # the first are being drawn
    ("pictures", "pictures/final.npy"),
    ("report", "cascade.yaml"),
)


def test_killed_again_and_again(whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """In every stage with `make soak`; in every second otherwise, because each start takes long."""
    out, killed = tmp_path / "demo", list[Demo]()
    assert {stage for stage, _ in MOMENTS} == set(STAGES)
    for stage, pattern in MOMENTS if os.environ.get("UNCLIP_SOAK") else MOMENTS[1::2]:
        demo = Demo(out)
        demo.until_stage(stage)
        demo.until(lambda pattern=pattern: any(out.glob(pattern)))  # type: ignore[misc]
        assert demo.end(signal.SIGKILL) == -signal.SIGKILL
        killed.append(demo)
    for demo in killed:
        demo.wait_for_children()
    assert comparable(Demo(out).report()) == comparable(whole[1])
    assert results(out) == results(whole[0])


def test_stopped_while_ray_starts_while_it_runs_and_while_drawing(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "demo"
    stopped = list[int]()
    moments: list[tuple[str, str, signal.Signals, int]] = [
        ("prepare", "input", signal.SIGTERM, 75),  # Ray starts
        ("prepare", "input", signal.SIGINT, 130),
        ("prepare", "data/train/plan/plan.parquet", signal.SIGTERM, 75),  # Ray runs
        ("embed", "data/train/unclip.lock", signal.SIGINT, 130),
        ("decoder", "decoder/config.yaml", signal.SIGTERM, 75),
        ("pictures", "pictures", signal.SIGTERM, 75),
    ]
    for stage, pattern, number, code in moments:
        demo = Demo(out)
        demo.until_stage(stage)
        demo.until(lambda pattern=pattern: any(out.glob(pattern)))  # type: ignore[misc]
        assert demo.end(number) == code, demo.errors[-4000:]
        demo.wait_for_children()
        assert "Traceback" not in demo.errors
        last = demo.errors.splitlines()[-1]
        assert "same command" in last
        assert last.startswith("error: ") == (code == 75)
        stopped.append(demo.process.pid)
        assert not (out / "unclip.lock").exists()
    assert comparable(Demo(out).report()) == comparable(whole[1])
    assert results(out) == results(whole[0])
    for pid in stopped:  # what a start that was given up left, the next one removed
        assert not list(Path("/tmp").glob(f"ucray-{pid}-*"))


def test_a_second_demo_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    first = Demo(out)
    first.until((out / "demo.json").exists)
    first.process.send_signal(signal.SIGSTOP)  # so that it cannot finish before the second begins
    second = Demo(out)
    second.process.communicate()
    first.end(signal.SIGKILL)
    assert second.process.returncode == 2
    assert f"pid {first.process.pid}" in second.errors
    assert len(second.errors.splitlines()) == 1


def test_another_demo_wants_another_folder(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out, report = whole
    with pytest.raises(UserError) as caught:
        run_demo(out, ROOT / "docs", MICRO)
    message = "holds a demo with other data; choose another --out"
    assert line_and_code(caught.value) == (f"{out}: {message}", 2)
    configs = tmp_path / "configs"
    configs.mkdir()
    for path in MICRO.iterdir():
        (configs / path.name).write_text(path.read_text() + "seed: 1\n" * (path.stem == "prior"))
    with pytest.raises(UserError, match=r"holds a demo with other configs; choose another --out$"):
        run_demo(out, None, configs)
    kept = json.loads((out / "report.json").read_text())
    assert {**kept, "seconds": None} == {**report, "seconds": None}  # each call adds its time


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda folder: folder / "absent", (2, "no such file or folder")),
        (lambda folder: folder, (3, "empty")),
        (lambda folder: _file(folder / "a.jpg", b"x").parent, (3, "no file has a caption")),
        (lambda folder: _pairs(folder, 1, 0), (3, "1 usable pairs, too few to hold some out")),
        (
            lambda folder: _pairs(folder, 0, 40),
            (3, r"none of the .* rows .* \(not_an_image"),
        ),
    ],
)
def test_data_that_cannot_be_used(make: Any, expected: Any, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError, match=expected[1]) as caught:
        run_demo(tmp_path / "out", make(tmp_path / "data"), MICRO)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == expected[0]
    if not expected[1].startswith("none of"):  # that is known when shards are made
        assert not (tmp_path / "out").exists()  # free for better data


def _pairs(folder: Path, good: int, bad: int) -> Path:
    for index in range(good + bad):
        (folder / f"{index}.txt").write_text(f"number {index}")
        if index < good:
            Image.new("RGB", (32, 32)).save(folder / f"{index}.jpg")
        else:
            (folder / f"{index}.jpg").write_bytes(b"no picture")
    return folder


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (r"batch:", "bacth:", "sampling.bacth: unknown key; did you mean batch?"),
        (r"heldout: \d+", "heldout: many", "corpus.heldout: got 'many'"),
        (r"shown: \d+", "shown: 0", "report.shown: got 0"),
        (r"(?s).*", "corpus: 3", "corpus: got 3"),
        (r"corpus: {", "corpus: [", "demo.yaml"),
    ],
)
def test_configs_that_cannot_be_used(old: str, new: str, message: str, tmp_path: Path) -> None:
    configs = tmp_path / "configs"
    shutil.copytree(MICRO, configs)
    path = configs / "demo.yaml"
    path.write_text(re.sub(old, new, path.read_text(), count=1))
    with pytest.raises(UserError) as caught:
        run_demo(tmp_path / "out", None, configs)
    line, code = line_and_code(caught.value)
    assert code == 2
    assert message in line
    assert "demo.yaml" in line
    assert "\n" not in line
    assert not (tmp_path / "out").exists()


def test_a_mistake_through_the_command(tmp_path: Path) -> None:
    configs = tmp_path / "configs"
    shutil.copytree(MICRO, configs)
    (configs / "demo.yaml").write_text("corpus: 3")
    demo = Demo(tmp_path / "out", "--config", configs)
    demo.process.communicate()
    assert demo.process.returncode == 2
    assert demo.errors.startswith("error: corpus: got 3")
    assert "demo.yaml" in demo.errors
    assert demo.errors.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("lacking", ["demo", "up256"])
def test_a_config_that_is_not_there(lacking: str, tmp_path: Path) -> None:
    configs = tmp_path / "configs"
    shutil.copytree(MICRO, configs)
    (configs / f"{lacking}.yaml").unlink()
    with pytest.raises(UserError, match=rf"configs: has no {lacking}\.yaml"):
        run_demo(tmp_path / "out", None, configs)
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fills_up_on_the_way(
    whole: tuple[Path, dict[str, Any]], small_disk: Path
) -> None:
    """Each time a line that says so; with room, the report of a demo that always had it."""
    out = small_disk / "demo"
    for megabytes, stage in ((1, "corpus"), (12, "clip"), (72, "prior")):
        _resize(small_disk, f"{megabytes}m")
        demo = Demo(out)
        demo.process.communicate(timeout=1500)
        assert demo.process.returncode == 2, demo.errors[-4000:]
        last = demo.errors.splitlines()[-1]
        assert last.startswith("error: ")
        assert any(words in last.lower() for words in ("no space left on device", "of disk"))
        assert "Traceback" not in demo.errors
        assert [li for li in demo.errors.splitlines() if li.startswith("[")][-1].endswith(stage)
    _resize(small_disk, "1g")
    assert comparable(Demo(out).report()) == comparable(whole[1])
    assert results(out) == results(whole[0])


def _resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def _file(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("name", "most"), [("photos", 200), ("emoji", 200)])
def test_pictures_that_people_made(name: str, most: int, shared_data: Path, tmp_path: Path) -> None:
    """Photographs with several captions each; emoji with alpha, one in twenty of them."""
    data, out = tmp_path / name, tmp_path / "demo"
    data.mkdir()
    table = pq.read_table(shared_data / name / "captions.parquet")
    every = -(-table.num_rows // most)
    pq.write_table(table.take(list(range(0, table.num_rows, every))), data / "captions.parquet")
    for folder in (shared_data / name).iterdir():
        if folder.is_dir():
            (data / folder.name).symlink_to(folder)
    report = run_demo(out, data, MICRO)  # docs/demo.md has the command
    assert report["scores"] is None
    assert report["controls"] is None
    assert report["beyond"] == {}
    for cosine in report["clip_score"].values():
        assert -1 <= cosine <= 1
    assert set(report["clip_score"]) == {"caption", "true_picture", "caption_of_true_picture"}
    assert 0 <= report["prior_recall_at_1"] <= 1
    page = (out / "report.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html>")
    with Image.open(out / "pictures.png") as sheet:
        assert sheet.width > 4 * 256
    assert not (out / "data" / "unseen").exists()
