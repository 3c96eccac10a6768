"""`unclip evaluate` with a cascade whose weights are random: what it draws, tells and refuses."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import toy
from PIL import Image
from processes import HERE, environment
from small_cascade import cascade as small_cascade
from small_cascade import write_cascade
from typer.testing import CliRunner

import trainer.evaluation.drawn as drawn
import trainer.evaluation.run as run_module
from base.errors import Stopped, UserError
from data_pipeline.schema.dataset import DATASET_FILE
from trainer.cli import app
from trainer.evaluation.page import COLUMNS
from trainer.evaluation.report import summary

COUNT = 11
Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with cascade.yaml and a DATASET whose embeddings have the small CLIP's width."""
    folder = write_cascade(tmp_path_factory.mktemp("evaluated"), "guidance: 3.0")
    toy.write_dataset(folder / "data", (6, 0, 5), dim=16)
    return folder


@pytest.fixture
def run(place: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command; gives the report, or raises what it raises."""
    monkeypatch.setattr(drawn, "load_cascade", lambda _: small_cascade())

    def evaluate(*arguments: object, data: Path = place / "data") -> dict[str, Any]:
        words = ["evaluate", str(place), "--data", str(data), "--json", *map(str, arguments)]
        done = CliRunner().invoke(app, words, catch_exceptions=False)
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
        report: dict[str, Any] = json.loads(done.stdout)
        return report

    return evaluate


def without_time(report: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in report.items() if key != "seconds"}


def pixels(folder: Path) -> dict[str, bytes]:
    return {path.name: Image.open(path).tobytes() for path in sorted(folder.glob("0*.png"))}


@pytest.fixture(scope="module")
def whole(place: Path) -> tuple[Path, dict[str, Any]]:
    """An evaluation that nothing interrupted."""
    out = place / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawn, "load_cascade", lambda _: small_cascade())
        asked = run_module.Evaluation(place, str(place / "data"), out, batch=3, repeats=2)
        report = run_module.evaluate(asked)
    assert report is not None
    return out, json.loads(json.dumps(report))


def test_the_report(whole: tuple[Path, dict[str, Any]]) -> None:
    out, report = whole
    assert json.loads((out / "report.json").read_text()) == report
    assert (report["count"], report["seed"]) == (COUNT, 0)
    (result,) = report["results"]
    assert result["guidance"] == 3
    assert result["fid"] is None
    assert result["fid_clip"] > 0
    assert result["diversity"]["captions"] == COUNT
    assert result["scenes"] is None
    assert -1 <= report["prior"]["cosine"] <= 1
    assert report["upsamplers"]["up"]["count"] == COUNT
    (line,) = (li for li in summary(report).splitlines() if li.startswith("guidance 3: "))
    assert f"FID_CLIP {result['fid_clip']:.2f}, precision" in line
    assert f"warning: {report['warnings'][0]}" in summary(report).splitlines()
    assert report["warnings"] == [
        f"fid_clip: {COUNT} pictures for 16 dimensions: the covariances have not full rank, so "
        "that it is too high; compare it with that of equally many pictures alone"
    ]


def test_the_page_and_the_pictures(whole: tuple[Path, dict[str, Any]]) -> None:
    out, report = whole
    page = (out / "report.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert f"{report['results'][0]['fid_clip']:.2f}" in page
    assert report["warnings"][0] in page
    assert "no FID and no Inception Score" in page
    with Image.open(out / "pictures.png") as sheet:
        assert sheet.width > COLUMNS * 256
    names = pixels(out / "pictures" / "guidance_3")
    assert len(names) == COUNT
    assert len(set(names.values())) == COUNT
    assert len(pixels(out / "repeats" / "guidance_3")) == 2 * COUNT


def test_the_first_of_several_is_the_picture_itself(whole: tuple[Path, dict[str, Any]]) -> None:
    one, several = (
        list(pixels(whole[0] / name / "guidance_3").values()) for name in ("pictures", "repeats")
    )
    assert several[::2] == one
    assert not set(several[1::2]) & set(one)


def test_stopped_and_continued_with_another_batch(
    run: Run, whole: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was drawn stays, and the figures are those of an evaluation never stopped."""
    out, calls = tmp_path / "out", list[int]()
    plain = drawn.uses.text

    def stopping(cascade: Any, captions: Any, random: Any) -> Any:
        if len(calls) == 2:
            raise Stopped("stopped")
        calls.append(len(captions))
        return plain(cascade, captions, random)

    monkeypatch.setattr(drawn.uses, "text", stopping)
    with pytest.raises(Stopped):
        run("--out", out, "--batch", 4, "--repeats", 2)
    assert len(pixels(out / "pictures" / "guidance_3")) == sum(calls) == 8
    assert not (out / "report.json").exists()
    monkeypatch.setattr(drawn.uses, "text", plain)
    report = run("--out", out, "--batch", 3, "--repeats", 2)
    assert pixels(out / "pictures" / "guidance_3") == pixels(whole[0] / "pictures" / "guidance_3")
    expected = whole[1]["results"][0]
    assert report["results"][0]["fid_clip"] == pytest.approx(expected["fid_clip"], rel=1e-4)
    assert report["results"][0]["overlap_clip"] == expected["overlap_clip"]


def test_fewer_captions_are_the_same_pictures(
    run: Run, whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    run("--out", tmp_path / "out", "--count", 5, "--repeats", 1)
    some = pixels(tmp_path / "out" / "pictures" / "guidance_3")
    assert len(some) == 5
    assert set(some.values()) <= set(pixels(whole[0] / "pictures" / "guidance_3").values())
    assert not (tmp_path / "out" / "repeats").exists()


def test_a_sweep_has_a_row_for_each_guidance(
    run: Run, whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    report = run("--out", out, "--guidance", "1,3,1", "--repeats", 1, "--count", 6)
    assert [result["guidance"] for result in report["results"]] == [1, 3]
    assert report["results"][0]["fid_clip"] != report["results"][1]["fid_clip"]
    with Image.open(out / "guidance.png") as sheet:
        assert sheet.height > 2 * 256
    assert "distance to true pictures against CLIP score" in (out / "report.html").read_text()
    assert set(pixels(out / "pictures" / "guidance_3").values()) <= set(
        pixels(whole[0] / "pictures" / "guidance_3").values()
    )


def test_two_processes_find_what_one_finds(
    place: Path, whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Every figure, those of uneven shares too; one that is averaged over processes is another."""
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = [str(HERE / "evaluation_ranks.py"), str(place), str(place / "data"), str(tmp_path)]
    done = subprocess.run(
        [sys.executable, *start, *script],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=480,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    report, expected = json.loads((tmp_path / "report.json").read_text()), whole[1]
    found, wanted = report["results"][0], expected["results"][0]
    assert found["fid_clip"] == pytest.approx(wanted["fid_clip"], rel=1e-4)
    assert found["overlap_clip"] == wanted["overlap_clip"]
    for side in ("drawn", "true"):
        assert found["clip_score"][side] == pytest.approx(wanted["clip_score"][side], rel=1e-4)
    assert found["diversity"] == pytest.approx(wanted["diversity"], rel=1e-3)
    assert report["prior"] == pytest.approx(expected["prior"], rel=1e-4)


def test_another_evaluation_wants_another_folder(
    run: Run, whole: tuple[Path, dict[str, Any]]
) -> None:
    with pytest.raises(UserError, match="holds pictures of another request"):
        run("--out", whole[0], "--seed", 1)


def test_a_value_of_the_cascade_is_set(run: Run, tmp_path: Path) -> None:
    report = run("--out", tmp_path / "out", "--set", "decoder.guidance=2", "--count", 4)
    assert report["results"][0]["guidance"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--count", 12), r"--count: got 12, .* has 11 distinct captions"),
        (("--count", 3), "3 captions to draw, expected more than 3"),
        (("--guidance", "1,fast"), "--guidance: got '1,fast', expected numbers"),
        (("--guidance", "-1"), "--guidance: got '-1', expected numbers of at least 0"),
        (("--set", "decoder.stepps=3"), r"decoder\.stepps: unknown key; did you mean steps"),
        (("--embeddings", "other"), "has no embeddings named 'other'"),
    ],
)
def test_mistakes(arguments: tuple[object, ...], message: str, run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        run("--out", tmp_path / "out", *arguments)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_judges_that_are_not_there_are_told_before_anything_is_drawn(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "weights.pth").write_text("not found")
    for option, value, message in (
        ("--inception", tmp_path / "weights.pth", "no file of torch's weights"),
        ("--features", "nowhere", "--features: clip: got 'nowhere'"),
    ):
        with pytest.raises(UserError, match=message):
            run("--out", tmp_path / "out", option, value)
    assert not list((tmp_path / "out").rglob("*.png"))


def test_a_dataset_without_embeddings(run: Run, tmp_path: Path) -> None:
    root = toy.write_dataset(tmp_path / "data", (6,), dim=16)
    told = json.loads((root / DATASET_FILE).read_text())
    (root / DATASET_FILE).write_text(json.dumps({**told, "clip": None}))
    with pytest.raises(UserError, match="has no embeddings; make them with `unclip data embed`"):
        run("--out", tmp_path / "out", data=root)
    with pytest.raises(UserError, match="not a DATASET"):
        run("--out", tmp_path / "out", data=tmp_path)
