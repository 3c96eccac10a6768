"""`generate text`: one picture a caption, nothing drawn twice, mistakes in one line."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

import trainer.sampling.pictures as pictures
from base.command import line_and_code
from base.errors import NothingUsable, Stopped, UserError
from trainer.cli import app
from trainer.sampling.config import CascadeConfig

CASCADE = "clip: clip\nprior: {run: prior}\ndecoder: {run: decoder}\n"


class Colours:
    """Stands for a trained cascade: the picture's colour tells caption, seed and position."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[str, ...], int, int]] = []

    def generate(self, captions: Sequence[str], seed: int, first: int = 0) -> Tensor:
        self.calls.append((tuple(captions), seed, first))
        colours = [[len(c), seed, first + i] for i, c in enumerate(captions)]
        return torch.tensor(colours, dtype=torch.uint8)[:, :, None, None].expand(-1, 3, 8, 8)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Colours:
    colours = Colours()
    monkeypatch.setattr(pictures, "load_cascade", lambda _: colours)
    return colours


@pytest.fixture
def cascade(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "cascade.yaml").write_text(CASCADE)
    return tmp_path / "run"


def run(*arguments: object) -> str:
    """Standard output of `generate text`; whatever it raises is raised."""
    done = CliRunner().invoke(
        app, ["generate", "text", *map(str, arguments)], catch_exceptions=False
    )
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.stdout


def colour(path: Path) -> list[int]:
    pixels = np.asarray(Image.open(path))
    assert pixels.shape == (8, 8, 3)
    assert (pixels == pixels[0, 0]).all()
    return [int(value) for value in pixels[0, 0]]


def test_one_picture_a_caption_in_order(model: Colours, cascade: Path, tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("three\n\n  four  \n")
    out = tmp_path / "pictures"
    result = json.loads(
        run(
            cascade, "a", "bb", "--file", tmp_path / "captions.txt",
            "--out", out, "--count", 2, "--seed", 9, "--batch", 3, "--json",
        )
    )  # fmt: skip
    captions = ["a", "a", "bb", "bb", "three", "three", "four", "four"]
    assert [entry["caption"] for entry in result["pictures"]] == captions
    assert [colour(Path(entry["file"])) for entry in result["pictures"]] == [
        [len(caption), 9, position] for position, caption in enumerate(captions)
    ]
    assert [call[2] for call in model.calls] == [0, 3, 6]
    assert json.loads((out / "captions.json").read_text())["captions"] == captions
    assert len(list(out.iterdir())) == 9


def test_what_is_there_is_not_drawn_again(model: Colours, cascade: Path, tmp_path: Path) -> None:
    arguments = (cascade, "a", "bb", "ccc", "--out", tmp_path / "out", "--batch", 1)
    run(*arguments)
    assert len(model.calls) == 3
    run(*arguments)
    assert len(model.calls) == 3
    (tmp_path / "out" / "000002.png").unlink()
    run(*arguments)
    assert model.calls[3:] == [(("ccc",), 0, 2)]


def test_stopped_and_continued(
    model: Colours, cascade: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    draw = model.generate

    def stopped(captions: Sequence[str], seed: int, first: int = 0) -> Tensor:
        if first == 2:
            raise Stopped("stopped")
        return draw(captions, seed, first)

    monkeypatch.setattr(model, "generate", stopped)
    captions = ["a", "bb", "ccc", "dddd"]
    with pytest.raises(Stopped):
        pictures.draw_captions(cascade, captions, 0, out, 2)
    assert sorted(path.name for path in out.glob("*.png")) == ["000000.png", "000001.png"]
    monkeypatch.setattr(model, "generate", draw)
    paths = pictures.draw_captions(cascade, captions, 0, out, 2)
    assert [colour(path)[0] for path in paths] == [1, 2, 3, 4]
    assert model.calls[-1] == (("ccc", "dddd"), 0, 2)


def test_a_disk_that_fills_up_while_drawing(
    model: Colours, cascade: Path, small_disk: Path, fill_disk: Callable[[Path], Path]
) -> None:
    out = small_disk / "out"
    captions = ["a", "bb", "ccc", "dddd"]
    pictures.draw_captions(cascade, captions, 0, out, 2)
    drawn = {path.name: path.read_bytes() for path in out.glob("*.png")}
    for path in sorted(out.glob("*.png"))[2:]:
        path.unlink()
    filler = fill_disk(small_disk)
    filler.open("ab").write(bytes(4096))
    with pytest.raises(OSError, match="No space left") as caught:
        pictures.draw_captions(cascade, captions, 0, out, 2)
    line, code = line_and_code(caught.value)
    assert (code, line.startswith("no space left on device")) == (2, True)
    filler.unlink()
    assert sorted(path.name for path in out.glob("*")) == [
        "000000.png", "000001.png", "captions.json"
    ]  # fmt: skip
    pictures.draw_captions(cascade, captions, 0, out, 2)
    assert {path.name: path.read_bytes() for path in out.glob("*.png")} == drawn


@pytest.mark.parametrize("changed", ["caption", "seed", "cascade"])
def test_another_request_wants_another_folder(
    changed: str, model: Colours, cascade: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(cascade, "a", "--out", out)
    if changed == "cascade":
        (cascade / "cascade.yaml").write_text(CASCADE.replace("decoder}", "decoder, steps: 3}"))
    with pytest.raises(UserError, match="choose another --out"):
        run(
            cascade,
            "b" if changed == "caption" else "a",
            "--out",
            out,
            "--seed",
            int(changed == "seed"),
        )
    assert len(model.calls) == 1


def test_pictures_of_somebody_else_stay(model: Colours, cascade: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "holiday.png").write_bytes(b"x")
    with pytest.raises(UserError, match="holds other pictures"):
        run(cascade, "a", "--out", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["holiday.png"]


def test_requests_without_captions(cascade: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no caption"):
        run(cascade)
    with pytest.raises(UserError, match="no caption"):
        run(cascade, "  ")
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(NothingUsable, match=r"empty\.txt"):
        run(cascade, "--file", tmp_path / "empty.txt")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match="not UTF-8"):
        run(cascade, "--file", tmp_path / "bytes.txt")


def test_a_cascade_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cascade\.yaml"):
        run(tmp_path / "nowhere", "a", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_are_chosen_for_all_networks_at_once(
    model: Colours, cascade: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that the runs do not have leave no claim on the folder."""
    loaded: list[CascadeConfig] = []

    def load(config: CascadeConfig) -> Colours:
        loaded.append(config)
        if config.prior.weights == "ema_0.070":
            raise UserError("weights: got 'ema_0.070'")
        return model

    monkeypatch.setattr(pictures, "load_cascade", load)
    text = CASCADE + "upsamplers: [{run: up64}, {run: up256, weights: raw}]\n"
    (cascade / "cascade.yaml").write_text(text)
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"ema_0\.070"):
        run(cascade, "a", "--out", out, "--weights", "ema_0.070")
    run(cascade, "a", "--out", out, "--weights", "ema_0.050")
    config = loaded[-1]
    parts = [config.prior, config.decoder, *config.upsamplers]
    assert [part.weights for part in parts] == ["ema_0.050"] * 4
    with pytest.raises(UserError, match="weights or cascade; choose another --out"):
        run(cascade, "a", "--out", out)
    run(cascade, "a", "--out", tmp_path / "plain")
    assert [part.weights for part in loaded[-1].upsamplers] == ["ema", "raw"]
    (cascade / "cascade.yaml").write_text(CASCADE.replace("decoder}", "decoder, weights: mean}"))
    with pytest.raises(UserError, match=r"decoder\.weights: got 'mean', expected text like"):
        run(cascade, "a", "--out", tmp_path / "mean")
