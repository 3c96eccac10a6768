"""Requests: each picture once, whatever interrupts; folders of other requests stay as they are."""

import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from processes import HERE
from small_cascade import train, write_cascade

import trainer.sampling.requests as requests
from base.command import line_and_code
from base.errors import Stopped, UserError
from trainer.sampling.config import CascadeConfig
from trainer.sampling.requests import Drawn, Request, fulfil, read_settings


class Colours:
    """Draws a picture whose colour tells caption, seed and position."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.stops_at: int | None = None

    def request(self, captions: Sequence[str], seed: int = 0, **settings: Any) -> Request:
        def draw(_: object, positions: Sequence[int]) -> Drawn:
            if self.stops_at in positions:
                raise Stopped("stopped")
            self.calls.append(list(positions))
            colours = [[len(captions[at]), seed, at] for at in positions]
            pixels = torch.tensor(colours, dtype=torch.uint8)[:, :, None, None]
            return Drawn(
                pixels.expand(-1, 3, 8, 8), [{"length": len(captions[at])} for at in positions]
            )

        return Request("text", seed, [{"caption": text} for text in captions], draw, settings)


@pytest.fixture
def colours(monkeypatch: pytest.MonkeyPatch) -> Colours:
    monkeypatch.setattr(requests, "load_cascade", lambda _: SimpleNamespace(steps=dict))
    return Colours()


@pytest.fixture
def cascade(tmp_path: Path) -> Path:
    return write_cascade(tmp_path / "run")


def colour(path: Path) -> list[int]:
    pixels = np.asarray(Image.open(path))
    assert pixels.shape == (8, 8, 3)
    assert (pixels == pixels[0, 0]).all()
    return [int(value) for value in pixels[0, 0]]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_picture_each_in_order_that_tells_what_made_it(
    colours: Colours, cascade: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    paths = fulfil(colours.request(["a", "bb", "ccc"], 9, steps=4), cascade, out, 2)
    assert [colour(path) for path in paths] == [[1, 9, 0], [2, 9, 1], [3, 9, 2]]
    assert colours.calls == [[0, 1], [2]]
    assert names(out) == ["000000.png", "000001.png", "000002.png", "pictures.json", "sheet.png"]
    record = json.loads((out / "pictures.json").read_text())
    assert (record["use"], record["seed"], record["steps"]) == ("text", 9, 4)
    told = {"use": "text", "seed": 9, "steps": 4, "position": 1, "caption": "bb", "length": 2}
    assert read_settings(paths[1]) == {**told, "cascade": record["cascade"]}
    decoder = record["cascade"]["decoder"]
    assert decoder["run"] == str(cascade / "decoder")
    assert [decoder[name] for name in ("samples", "weights")] == [64, "ema"]
    assert [decoder[name] for name in ("sampler", "steps", "guidance")] == ["ddim", 25, 3.0]
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.width > sheet.height


def test_one_picture_has_no_sheet(colours: Colours, cascade: Path, tmp_path: Path) -> None:
    fulfil(colours.request(["a"]), cascade, tmp_path / "out", 2)
    assert names(tmp_path / "out") == ["000000.png", "pictures.json"]


def test_what_is_there_is_not_drawn_again(colours: Colours, cascade: Path, tmp_path: Path) -> None:
    asked, out = colours.request(["a", "bb", "ccc", "dddd"]), tmp_path / "out"
    fulfil(asked, cascade, out, 1)
    assert len(colours.calls) == 4
    fulfil(asked, cascade, out, 1)
    assert len(colours.calls) == 4
    for name in ("000000.png", "000002.png"):
        (out / name).unlink()
    fulfil(asked, cascade, out, 8)
    assert colours.calls[4:] == [[0, 2]]


def test_stopped_and_continued(colours: Colours, cascade: Path, tmp_path: Path) -> None:
    asked, out = colours.request(["a", "bb", "ccc", "dddd"]), tmp_path / "out"
    colours.stops_at = 2
    with pytest.raises(Stopped):
        fulfil(asked, cascade, out, 2)
    assert names(out) == ["000000.png", "000001.png", "pictures.json"]
    colours.stops_at = None
    paths = fulfil(asked, cascade, out, 2)
    assert [colour(path)[0] for path in paths] == [1, 2, 3, 4]
    assert colours.calls == [[0, 1], [2, 3]]


def test_a_mistake_that_shows_in_drawing_leaves_no_claim(
    colours: Colours, cascade: Path, tmp_path: Path
) -> None:
    def draw(_: object, positions: Sequence[int]) -> Drawn:
        raise UserError("captions: got two that are the same")

    with pytest.raises(UserError, match="that are the same"):
        fulfil(Request("text", 0, [{}], draw), cascade, tmp_path / "out", 1)
    assert names(tmp_path / "out") == []
    fulfil(colours.request(["a"]), cascade, tmp_path / "out", 1)


def test_a_stop_is_obeyed_at_the_next_step(
    cascade: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = torch.nn.Identity()
    loaded = SimpleNamespace(steps=lambda: {"decoder": network})
    monkeypatch.setattr(requests, "load_cascade", lambda _: loaded)
    steps = 0

    def draw(_: object, positions: Sequence[int]) -> Drawn:
        nonlocal steps
        for _ in range(9):
            network(torch.zeros(1))
            steps += 1
            if steps == 2:
                os.kill(os.getpid(), signal.SIGTERM)
        return Drawn(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))

    with pytest.raises(Stopped):
        fulfil(Request("text", 0, [{}], draw), cascade, tmp_path / "out", 1)
    assert steps == 2


def test_a_disk_that_fills_up_while_drawing(
    colours: Colours,
    cascade: Path,
    small_disk: Path,
    fill_disk: Callable[[Path], Path],
) -> None:
    asked, out = colours.request(["a", "bb", "ccc", "dddd"]), small_disk / "out"
    drawn = {path.name: path.read_bytes() for path in fulfil(asked, cascade, out, 2)}
    for path in sorted(out.glob("0*.png"))[2:]:
        path.unlink()
    filler = fill_disk(small_disk)
    filler.open("ab").write(bytes(4096))
    with pytest.raises(OSError, match="No space left") as caught:
        fulfil(asked, cascade, out, 2)
    line, code = line_and_code(caught.value)
    assert (code, line.startswith("no space left on device")) == (2, True)
    filler.unlink()
    assert names(out) == ["000000.png", "000001.png", "pictures.json", "sheet.png"]
    assert {path.name: path.read_bytes() for path in fulfil(asked, cascade, out, 2)} == drawn


@pytest.mark.parametrize("changed", ["caption", "seed", "cascade", "checkpoint", "settings"])
def test_another_request_wants_another_folder(
    changed: str, colours: Colours, cascade: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    fulfil(colours.request(["a"]), cascade, out, 1)
    if changed == "cascade":
        write_cascade(cascade, "steps: 3")
    if changed == "checkpoint":
        train(cascade / "prior", 128)
    other = colours.request(
        ["b" if changed == "caption" else "a"],
        int(changed == "seed"),
        **({"steps": 3} if changed == "settings" else {}),
    )
    with pytest.raises(UserError, match="choose another --out"):
        fulfil(other, cascade, out, 1)
    assert len(colours.calls) == 1


def test_pictures_of_somebody_else_stay(colours: Colours, cascade: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "holiday.png").write_bytes(b"x")
    with pytest.raises(UserError, match="holds other pictures"):
        fulfil(colours.request(["a"]), cascade, tmp_path / "out", 1)
    assert names(tmp_path / "out") == ["holiday.png"]


def test_a_picture_of_others_tells_nothing(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="no picture of ours"):
        read_settings(tmp_path / "a.png")


def test_processes_share_the_pictures(
    tmp_path: Path, torchrun: Callable[[int, Path, Sequence[object]], str]
) -> None:
    """Two ranks draw what one draws, each its batches."""
    write_cascade(tmp_path)
    for ranks, out in ((2, "two"), (1, "one")):
        torchrun(ranks, HERE / "sampling_ranks.py", [tmp_path / "cascade.yaml", tmp_path / out])
    assert names(tmp_path / "two") == names(tmp_path / "one")
    for name in names(tmp_path / "one"):
        one, two = ((tmp_path / out / name).read_bytes() for out in ("one", "two"))
        assert one == two, name


def test_weights_are_chosen_for_all_networks_at_once(
    colours: Colours, cascade: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that the runs do not have leave no claim on the folder."""
    loaded: list[CascadeConfig] = []

    def load(config: CascadeConfig) -> Any:
        loaded.append(config)
        if config.prior.weights == "ema_0.070":
            raise UserError("weights: got 'ema_0.070'")
        return SimpleNamespace(steps=dict)

    monkeypatch.setattr(requests, "load_cascade", load)
    write_cascade(cascade, "weights: raw", ["up64", "up256"])
    asked, out = colours.request(["a"]), tmp_path / "out"
    with pytest.raises(UserError, match=r"ema_0\.070"):
        fulfil(asked, cascade, out, 1, "ema_0.070")
    fulfil(asked, cascade, out, 1, "ema_0.050")
    config = loaded[-1]
    parts = [config.prior, config.decoder, *config.upsamplers]
    assert [part.weights for part in parts] == ["ema_0.050"] * 4
    with pytest.raises(UserError, match="weights or cascade; choose another --out"):
        fulfil(asked, cascade, out, 1)
