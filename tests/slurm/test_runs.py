"""What the launcher reads in a RUN, and when it has it save."""

import json
import time
from pathlib import Path

import pytest

from slurm.lookout import Lookout, needed_seconds
from slurm.runs import RunFiles


def run_with(folder: Path, *events: tuple[float, str, dict[str, object]]) -> RunFiles:
    lines = [json.dumps({"time": when, "event": event, **more}) for when, event, more in events]
    (folder / "events.jsonl").write_text("\n".join(lines) + "\n")
    return RunFiles(folder)


def saved(*seconds: float) -> list[tuple[float, str, dict[str, object]]]:
    return [(float(n), "saved", {"samples": n, "seconds": s}) for n, s in enumerate(seconds)]


def test_what_a_preemption_cost_is_told_without_the_queue(tmp_path: Path) -> None:
    run = run_with(
        tmp_path,
        (90.0, "begins", {"samples": 0}),
        (91.0, "first step", {"samples": 8}),
        (100.5, "asked to stop", {"samples": 64}),
        (102.0, "saved", {"samples": 64, "seconds": 1.5}),
        (100.0, "signalled", {}),
        (103.0, "requeued", {"samples": 64, "code": 75}),
        (203.0, "started", {"job": "7"}),
        (212.0, "begins", {"samples": 64}),
        (213.0, "first step", {"samples": 72}),
    )
    (cost,) = run.preemptions()
    assert (cost.to_save, cost.queued, cost.to_step, cost.lost) == (3.0, 100.0, 10.0, 13.0)
    assert str(cost).startswith("preempted: 13.0 s lost, 3.0 to save and 10.0 to the first")


def test_a_breakdown_and_a_cancelled_job_are_no_preemption(tmp_path: Path) -> None:
    run = run_with(
        tmp_path,
        (1.0, "requeued", {"samples": 0, "code": 137}),
        (2.0, "started", {}),
        (3.0, "first step", {"samples": 8}),
        (3.5, "signalled", {}),
        (3.6, "requeued", {"samples": 8, "code": 137}),
        (3.7, "started", {}),
        (3.8, "first step", {"samples": 16}),
        (4.0, "signalled", {}),
        (9.0, "started", {}),
        (10.0, "first step", {"samples": 16}),
    )
    assert run.preemptions() == []


def test_damaged_lines_are_passed_over(tmp_path: Path) -> None:
    whole = {"time": 1.0, "event": "saved", "samples": 8, "seconds": 2.0}
    text = f'[1]\n{{"time": "x", "event": "saved"}}\n{json.dumps(whole)}\n{{"time": 3'
    (tmp_path / "events.jsonl").write_text(text)
    assert RunFiles(tmp_path).events() == [whole]
    assert RunFiles(tmp_path / "none").events() == []


def test_what_is_noted_can_be_read(tmp_path: Path) -> None:
    run = RunFiles(tmp_path)
    run.note("started", 5.0, job="7")
    run.note("requeued", samples=0, code=75)
    first, second = run.events()
    assert first == {"time": 5.0, "event": "started", "job": "7"}
    assert abs(second["time"] - time.time()) < 60
    RunFiles(tmp_path / "none").note("started")
    assert not (tmp_path / "none").exists()


def test_the_time_to_save_follows_from_the_longest_of_the_latest_saves(tmp_path: Path) -> None:
    assert needed_seconds(RunFiles(tmp_path)) is None
    run = run_with(tmp_path, *saved(900.0, *[20.0] * 9, 50.0))
    assert needed_seconds(run) == 2 * 50 + 30
    line = {"samples": 640, "steps": 10, "samples_per_second": 32.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    assert needed_seconds(run) == 2 * (50 + 2) + 30


@pytest.mark.parametrize(
    ("seconds_left", "seconds_ago", "now"),
    [(100.0, 1000.0, True), (200.0, 1000.0, False), (100.0, 90.0, False)],
)
def test_a_run_is_asked_in_time_but_not_in_the_first_half(
    tmp_path: Path, seconds_left: float, seconds_ago: float, now: bool
) -> None:
    end = time.time() + seconds_left
    lookout = Lookout(run_with(tmp_path, *saved(50.0)), lambda: end)
    lookout._began = time.time() - seconds_ago
    assert lookout.look() is now


def test_a_job_that_was_given_more_time_goes_on(tmp_path: Path) -> None:
    ends = [time.time() + 60, time.time() + 6000]
    lookout = Lookout(run_with(tmp_path, *saved(50.0)), lambda: ends.pop(0))
    lookout._began = time.time() - 1000
    assert not lookout.look()
    assert not Lookout(run_with(tmp_path, *saved(50.0)), lambda: None).look()


def test_a_silent_slurm_does_not_keep_a_run_from_saving(tmp_path: Path) -> None:
    ends = [time.time() + 60, None]
    lookout = Lookout(run_with(tmp_path, *saved(50.0)), lambda: ends.pop(0))
    lookout._began = time.time() - 1000
    assert lookout.look()


def test_a_preemption_is_told_once_and_those_before_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cycle = [(0.0, "signalled"), (1.0, "requeued"), (2.0, "started"), (3.0, "first step")]
    events = [(when, event, {"samples": 8, "code": 75}) for when, event in cycle]
    run = run_with(tmp_path, *events)
    lookout = Lookout(run, lambda: None)
    lookout.look()
    assert capsys.readouterr().err == ""
    run_with(tmp_path, *events, *events)
    lookout.look()
    lookout.look()
    assert capsys.readouterr().err.count("preempted: 2.0 s lost") == 1
