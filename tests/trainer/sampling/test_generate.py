"""`unclip generate`: every use from the command line, and mistakes in one line."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy
from PIL import Image
from small_cascade import cascade as small_cascade
from small_cascade import write_cascade
from typer.testing import CliRunner

import trainer.sampling.requests as requests
from base.errors import NothingUsable, UserError
from trainer.cli import app


@pytest.fixture
def cascade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for a trained one: the networks' weights are random."""
    monkeypatch.setattr(
        requests, "load_cascade", lambda config: replace(small_cascade(), config=config)
    )
    return write_cascade(tmp_path / "run")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def run(*arguments: object) -> str:
    """Standard output of `generate`; whatever it raises is raised."""
    done = CliRunner().invoke(app, ["generate", *map(str, arguments)], catch_exceptions=False)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def made(*arguments: object) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = json.loads(run(*arguments, "--json"))["pictures"]
    return shown


def pixels(entry: dict[str, Any]) -> Any:
    return np.asarray(Image.open(entry["file"])).astype(int)


def test_captions_from_the_line_and_from_a_file(cascade: Path, tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("three\n\n  four  \n", encoding="utf-8-sig")
    shown = made(
        "text", cascade, "a", "--file", tmp_path / "captions.txt",
        "--out", tmp_path / "out", "--count", 2, "--seed", 9, "--batch", 4,
    )  # fmt: skip
    assert [entry["caption"] for entry in shown] == ["a", "a", "three", "three", "four", "four"]
    assert [entry["position"] for entry in shown] == list(range(6))
    assert {entry["seed"] for entry in shown} == {9}
    assert len({pixels(entry).tobytes() for entry in shown}) == 6


def test_of_candidates_clip_chooses_the_nearest(cascade: Path, tmp_path: Path) -> None:
    one = made("text", cascade, "snow", "a b", "--out", tmp_path / "one")
    many = made("text", cascade, "snow", "a b", "--candidates", 3, "--out", tmp_path / "many")
    for single, best in zip(one, many, strict=True):
        assert single["candidate"] == 0
        assert best["similarity"] >= single["similarity"]
        if best["candidate"] == 0:
            assert np.abs(pixels(best) - pixels(single)).max() <= 1
    assert {entry["candidate"] for entry in many} - {0}


@pytest.mark.parametrize(
    ("use", "count"),
    [
        (["variations", "PHOTO", "--count", 2], 2),
        (["variations", "PHOTO", "PHOTO", "--count", 1, "--fresh", "--eta", 0.5], 2),
        (["reconstruct", "PHOTO"], 1),
        (["interpolate", "PHOTO", "OTHER", "--frames", 3], 3),
        (["interpolate", "--texts", "snow", "a red circle", "--frames", 2], 2),
        (["text-diff", "PHOTO", "snow", "a red circle", "--frames", 3, "--most", 0.3], 3),
        (["inpaint", "PHOTO", "snow", "--mask", "MASK", "--count", 2], 2),
        (["inpaint", "PHOTO", "snow", "--box", "0,0,20,40"], 1),
        (["outpaint", "PHOTO", "--size", "40x36"], 1),
        (["outpaint", "PHOTO", "snow", "--size", "48X32"], 1),
        (["pca", "PHOTO", "--data", "DATA", "--dims", "4,1,8"], 3),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, list) else None,
)
def test_every_use(
    use: list[object], count: int, cascade: Path, photo: Path, tmp_path: Path, dataset: Path
) -> None:
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "other.png")
    mask = np.zeros((40, 48), np.uint8)
    mask[10:20, 10:20] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    if "DATA" in use:
        dataset = toy.write_dataset(tmp_path / "data", [40], dim=16)
    named = {
        "PHOTO": photo, "OTHER": tmp_path / "other.png", "MASK": tmp_path / "mask.png",
        "DATA": dataset,
    }  # fmt: skip
    name, *rest = [named.get(str(word), word) for word in use]
    shown = made(name, cascade, *rest, "--out", tmp_path / "out")
    assert len(shown) == count
    assert all(entry["use"] == name for entry in shown)
    sizes = {Image.open(entry["file"]).size for entry in shown}
    assert len(sizes) == 1
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert len(made(name, cascade, *rest, "--out", tmp_path / "out")) == count
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_values_over_the_file_are_told_by_every_picture(cascade: Path, tmp_path: Path) -> None:
    chosen = ["--set", "decoder.guidance=2", "--set", "prior.sampler=heun", "--weights", "raw"]
    (shown,) = made("text", cascade, "snow", "--out", tmp_path / "out", *chosen)
    prior, decoder = shown["cascade"]["prior"], shown["cascade"]["decoder"]
    assert (decoder["guidance"], decoder["weights"], decoder["samples"]) == (2.0, "raw", 64)
    assert (prior["sampler"], prior["weights"]) == ("heun", "raw")
    with pytest.raises(UserError, match="choose another --out"):
        run("text", cascade, "snow", "--out", tmp_path / "out", "--weights", "raw")


def test_a_seed_that_would_be_another_ones_is_refused(cascade: Path, tmp_path: Path) -> None:
    words = ["text", str(cascade), "snow", "--out", str(tmp_path / "out"), "--seed", str(2**64)]
    done = CliRunner().invoke(app, ["generate", *words])
    assert done.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_a_negative_caption_wants_guidance(cascade: Path, tmp_path: Path) -> None:
    words = ["text", cascade, "snow", "--negative", "a red circle", "--out", tmp_path / "out"]
    with pytest.raises(UserError, match=r"negative: .* is 1, .* such as --set decoder\.guidance=3"):
        run(*words, "--set", "decoder.guidance=1")
    run(*words, "--set", "decoder.guidance=1", "--set", "prior.guidance=2")


def test_progress_names_the_network_at_work(
    cascade: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(requests.Progress, "advance", lambda _, n, at="": seen.append(at))
    run("text", cascade, "snow", "--out", tmp_path / "out")
    kinds = list(dict.fromkeys(line.partition(", step ")[0] for line in seen if line))
    assert kinds == ["prior", "decoder", "upsampler 1"]
    assert "decoder, step 3" in seen


def test_another_picture_of_the_same_name_is_another_request(
    cascade: Path, photo: Path, tmp_path: Path
) -> None:
    run("reconstruct", cascade, photo, "--out", tmp_path / "out")
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(photo)
    with pytest.raises(UserError, match="choose another --out"):
        run("reconstruct", cascade, photo, "--out", tmp_path / "out")


def test_mistakes_are_one_line(cascade: Path, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    corner = np.zeros((40, 48), np.uint8)
    corner[:, :4] = 255
    Image.fromarray(corner).save(tmp_path / "corner.png")
    for arguments, kind, told in (
        (["text", cascade], UserError, "no caption"),
        (["text", cascade, "  "], UserError, "no caption"),
        (["text", cascade, "--file", tmp_path / "empty.txt"], NothingUsable, r"empty\.txt"),
        (["variations", cascade, tmp_path / "none.png"], UserError, "none.png: no such file"),
        (["text-diff", cascade, photo, "a", "a "], UserError, "twice, expected a change"),
        (["text-diff", cascade, photo, "a", "A"], UserError, "CLIP reads as the same"),
        (["outpaint", cascade, photo, "--size", "big"], UserError, "--size: got 'big'"),
        (["outpaint", cascade, photo, "--size", "8x8"], UserError, "canvas: got 8×8"),
        (
            ["outpaint", cascade, photo, "--size", "10000000x10000000"],
            UserError,
            "size: got 10000000×10000000 pixels, expected at most 100,000,000",
        ),
        (["pca", cascade, photo, "--data", tmp_path, "--dims", "2,x"], UserError, "--dims"),
        (["pca", cascade, photo, "--data", tmp_path], UserError, "not a DATASET"),
        (
            ["inpaint", cascade, photo, "a", "--mask", tmp_path / "m.png"],
            UserError,
            "m.png: no such",
        ),
        (
            ["inpaint", cascade, photo, "a", "--mask", tmp_path / "corner.png"],
            UserError,
            r"corner.png: nothing is white in the middle square of the 48×40 picture, expected a "
            r"part of \[4, 0, 44, 40\] to paint",
        ),
        (
            ["inpaint", cascade, photo, "a", "--box", "0,0,4,40"],
            UserError,
            r"--box: got \[0, 0, 4, 40\], of which nothing lies in the middle square",
        ),
        (["inpaint", cascade, photo, "a"], UserError, "expected either --mask or --box"),
        (["inpaint", cascade, photo, "a", "--box", "4,4,2,9"], UserError, "--box: got '4,4,2,9'"),
        (["inpaint", cascade, photo, "a", "--box", "90,0,99,9"], UserError, "outside the 48×40"),
        (["reconstruct", tmp_path / "no-cascade", photo], UserError, "no such file"),
    ):
        with pytest.raises(kind, match=told) as caught:
            run(*arguments, "--out", tmp_path / "out")
        assert "\n" not in str(caught.value), arguments
        assert not list((tmp_path / "out").glob("*")), arguments
