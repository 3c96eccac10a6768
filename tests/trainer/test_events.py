"""What a run tells of itself with the time of day."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import toy

from base.errors import Stopped
from trainer.events import FILE, Events
from trainer.loop import train


def events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / FILE).read_text().splitlines()]


@pytest.mark.parametrize("threaded", [True, False])
def test_sessions_steps_and_saves_are_told_in_order(
    dataset: Path, tmp_path: Path, threaded: bool
) -> None:
    before, run = time.time(), tmp_path / "run"
    how = {"async_save": threaded}
    train(toy.toy_config(dataset, run, train={"samples": 48, **how}))
    train(toy.toy_config(dataset, run, train={"samples": 96, **how}))
    found = events(run)
    plain = [(each["event"], each["samples"]) for each in found if each["event"] != "saved"]
    assert plain == [("begins", 0), ("first step", 12), ("begins", 48), ("first step", 60)]
    assert [each["samples"] for each in found if each["event"] == "saved"] == [48, 96]
    times = [each["time"] for each in found]
    assert before - 1 < times[0]
    assert times == sorted(times)
    assert all(0 <= each["seconds"] < 60 for each in found if each["event"] == "saved")
    assert found[0]["ranks"] == 1


def test_a_stop_is_told_before_its_save(dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = toy.toy_config(dataset, run, objective={"stop_at": [30]})
    with pytest.raises(Stopped):
        train(config)
    names = [each["event"] for each in events(run)]
    assert names[:2] == ["begins", "first step"]
    assert names[-2:] == ["asked to stop", "saved"]


def test_what_cannot_be_told_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    Events(tmp_path).stepped(4)
    assert os.listdir(tmp_path) == [FILE]
    Events(None).stepped(4)
