"""The arithmetic of the paper's comparisons, and that what was drawn is not drawn again."""

from __future__ import annotations

import itertools
import sys
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import linalg, stats

from benchmarks.findings import __main__ as program
from benchmarks.findings.drawings import Drawing, Studio
from benchmarks.findings.extras import EXTRAS, extra_config
from benchmarks.findings.figures import (
    Figure,
    apart,
    difference,
    expected_best,
    frechet_figure,
    mean,
    share,
)
from benchmarks.findings.judging import near, spread
from benchmarks.findings.plan import TOGETHER, Counts, Plan
from benchmarks.findings.sheets import sheet, write_plot
from benchmarks.findings.tables import Row, Table

ROOT = Path(__file__).resolve().parents[2]
chance = np.random.default_rng(0)


@pytest.mark.parametrize(("right", "count"), [(0, 7), (7, 10), (128, 128)])
def test_a_share_has_wilsons_interval(right: int, count: int) -> None:
    found = share(np.arange(count) < right)
    wanted = stats.binomtest(right, count).proportion_ci(method="wilson")
    assert astuple(found) == pytest.approx((right / count, *wanted, count), abs=1e-6)


def test_a_mean_and_a_difference_of_pairs() -> None:
    first = chance.normal(size=40)
    second = first + chance.normal(0.3, 0.1, size=40)
    found = difference(second, first)
    half = 1.959964 * stats.sem(second - first)
    middle = (second - first).mean()
    assert astuple(found) == pytest.approx((middle, middle - half, middle + half, 40))
    apart_from_pairs = mean(second).high - mean(second).value
    assert found.high - found.value < apart_from_pairs / 3


def test_the_frechet_distance_is_that_of_the_matrix_root() -> None:
    first, second = chance.normal(size=(60, 5)), chance.normal(0.5, 2.0, size=(60, 5))
    a, b = np.cov(first.T), np.cov(second.T)
    moved = np.square(first.mean(0) - second.mean(0)).sum()
    wanted = moved + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
    made, true = torch.from_numpy(first), torch.from_numpy(second)
    found = frechet_figure(made, true)
    assert found.value == pytest.approx(wanted)
    assert found.low < wanted < found.high
    assert astuple(frechet_figure(made, true, made)) == pytest.approx((0, 0, 0, 60))


def test_the_best_of_some_is_the_mean_over_all_choices() -> None:
    scores, values = chance.normal(size=(6, 4)), chance.normal(size=(6, 4))
    for k in (1, 2, 4, 6):
        chosen = [
            values[max(some, key=lambda row: scores[row, column]), column]
            for column in range(4)
            for some in itertools.combinations(range(6), k)
        ]
        wanted = np.array(chosen).reshape(4, -1).mean(axis=1)
        np.testing.assert_allclose(expected_best(scores, values, k), wanted)


def test_variety_and_nearness() -> None:
    same = torch.eye(3)[None].expand(4, -1, -1)
    np.testing.assert_allclose(apart(same), 0, atol=1e-12)
    others = torch.stack([torch.eye(3), torch.eye(3).roll(1, dims=0)])
    np.testing.assert_allclose(apart(others), 1)
    found = near(torch.eye(3)[[0, 2, 2]], torch.eye(3))
    assert (found["cosine"].value, found["recall@1"].value) == pytest.approx((2 / 3, 2 / 3))


def test_places_of_captions_with_two_pictures_at_least() -> None:
    placed = np.full((3, 3, 2), np.nan)
    placed[:, 0] = 0.5
    placed[:2, 1] = [[0.25, 0.5], [0.75, 0.5]]
    placed[0, 2] = 0.1
    np.testing.assert_allclose(spread(placed), [0, 64 * 0.25])


def test_a_plan_draws_each_once_and_knows_how_many() -> None:
    counts = Counts(20, 10, 5, candidates=6).within(16)
    assert counts[:3] == (16, 10, 5)
    plan = Plan(Drawing(), counts, ("ar_prior",))
    drawings = plan.drawings()
    assert len(drawings) == len(set(drawings)) == len({drawing.name for drawing in drawings})
    assert "z_t, decoder trained for it" not in plan.conditions()
    assert {plan.count(drawing) for drawing in plan.conditions().values()} == {16}
    for sweep in plan.sweeps().values():
        for drawing in sweep.values():
            seeds = [Drawing(**{**vars(drawing), "seed": seed}) for seed in range(TOGETHER)]
            assert set(seeds) <= set(drawings)
            assert plan.count(drawing) >= 10
            assert min(plan.count(other) for other in seeds) >= 5


def test_a_table_tells_intervals() -> None:
    figures = {"single_all": Figure(0.5, 0.3, 0.6, 9), "Fréchet": Figure(0.02, 0.01, 0.03, 9)}
    table = Table(
        "A title", "of", [Row("one", figures), Row("two", {"Fréchet": figures["Fréchet"]})]
    )
    assert table.markdown().splitlines()[-2:] == [
        "| one | 50.0 (30.0–60.0) | 2.00 ± 1.00 |",
        "| two |  | 2.00 ± 1.00 |",
    ]
    assert table.to_json()["rows"]["two"]["Fréchet"]["count"] == 9


def test_sheets_and_plots(tmp_path: Path) -> None:
    picture = torch.zeros(3, 8, 8, dtype=torch.uint8)
    image = sheet({"a": [picture, picture], "b": [picture]}, ["one", "two"])
    assert image.getpixel((130 + 50, image.height - 50)) == (0, 0, 0)
    rows = [Row(f"{scale:g}", {"variety": Figure(0.5, 0.4, 0.6, 4)}) for scale in (1.0, 1.5)]
    write_plot([Table("guidance", "scale", rows)], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_extras_differ_from_the_demos_runs_as_they_say(tmp_path: Path) -> None:
    micro = ROOT / "configs" / "micro"
    for extra in EXTRAS:
        config = extra_config(extra, tmp_path / "demo", tmp_path / "out", micro)
        assert config.out == tmp_path / "out" / extra.name
        assert config.data.paths == (str(tmp_path / "demo" / "data" / "train"),)
    text = extra_config(EXTRAS[2], tmp_path, tmp_path, micro)
    assert text.objective.condition == "text_embedding"


def test_what_was_drawn_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    studio: Any = Studio.__new__(Studio)
    studio.out, calls = tmp_path, []

    class Three:
        def take(self, places: range) -> range:
            return places

    def batch(drawing: Drawing, pairs: range, bar: object) -> tuple[torch.Tensor, ...]:
        calls.append(pairs)
        return tuple(torch.tensor(list(pairs), dtype=torch.float32) for _ in range(4))

    studio.pairs, studio._batch = Three(), batch
    first = studio.draw(Drawing(), 40)
    assert studio.has(Drawing(), 40)
    assert not studio.has(Drawing(), 30)
    assert calls == [range(32), range(32, 40)]
    second = studio.draw(Drawing(), 40)
    assert len(calls) == 2
    assert torch.equal(first.pictures, second.pictures)


def test_an_unfinished_demo_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["findings", str(tmp_path)])
    assert program.main() == 2
    assert "has no cascade.yaml" in capsys.readouterr().err
