"""Damaged files end as rows, reasons or one line; and what kills a process is noticed and kept."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.soak import watch
from benchmarks.soak.__main__ import report
from benchmarks.soak.cases import damaged, outcome
from benchmarks.soak.seeds import KINDS, seeds
from data_pipeline.schema.dataset import REASONS

# Of whole ones: what no picture is behind, and a body above the cap.
SOUND = {"http": {"too_many_redirects", "http_passing", "too_many_bytes"}}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "evil"])
def test_damaged_files_end_as_they_may(kind: str, tmp_path: Path) -> None:
    whole = seeds(kind)
    for number in range(60):
        found = outcome(kind, damaged(kind, whole, 1, number), number, tmp_path)
        assert found in {"kept", "rows", "refused", "damaged", *REASONS}
    for number, data in enumerate(whole):
        assert outcome(kind, data, number, tmp_path) in {"kept", "rows", *SOUND.get(kind, ())}


def test_a_case_depends_on_its_seed_and_number_alone() -> None:
    whole = seeds("png")
    cases = [damaged("png", whole, 3, number) for number in range(20)]
    assert cases == [damaged("png", seeds("png"), 3, number) for number in range(20)]
    assert len(set(cases)) > 15
    assert cases != [damaged("png", whole, 4, number) for number in range(20)]


def test_cases_run_in_a_process_of_their_own(tmp_path: Path) -> None:
    tally = watch.run("ppm", 0, 60, tmp_path, most=25)
    assert (tally.cases, tally.failures) == (25, [])
    assert "| ppm | 25 |" in report([tally], 0, 1, "a command")


@pytest.mark.parametrize(
    ("does", "told"),
    [
        ("import os; print('> 0', flush=True); os.abort()", "ended with -6"),
        ("import time; print('> 0', flush=True); time.sleep(60)", "more than"),
        ("print('> 0\\n< 0 kept 0.1 5000')", "took 5000 MB"),
        ("import sys; print('> 0\\n< 0 error 0.1 5'); sys.stderr.write('Oh')", "raised"),
    ],
)
def test_what_must_not_happen_is_noticed(
    does: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "CHILD", (sys.executable, "-S", "-c", does))
    monkeypatch.setattr(watch, "SECONDS", 1.0)
    tally = watch.run("ppm", 0, 60, tmp_path, most=1)
    (failure,) = tally.failures
    assert told in failure
    assert (tmp_path / "ppm-0-0").read_bytes() == damaged("ppm", seeds("ppm"), 0, 0)
    assert failure in report([tally], 0, 1, "a command")
