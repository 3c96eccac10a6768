"""Statistics against plain counting, and the figure."""

import json
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from base.config import parse_config
from base.errors import UserError
from data_pipeline.curate.config import CurateConfig
from data_pipeline.curate.run import curate
from data_pipeline.stats.collect import collect
from data_pipeline.stats.plot import bins, draw, require_drawable, short
from data_pipeline.stats.tally import Tally


@given(st.lists(st.lists(st.integers(-50, 50), max_size=20), min_size=1, max_size=4))
def test_a_tally_counts_and_its_quantiles_are_those_of_sorted_values(
    parts: list[list[int]],
) -> None:
    tally = Tally()
    for part in parts:
        tally.add(np.array(part, np.int64))
    values = sorted(value for part in parts for value in part)
    assert tally.total == len(values)
    assert dict(zip(tally.places.tolist(), tally.counts.tolist(), strict=True)) == {
        value: values.count(value) for value in set(values)
    }
    for share in (0.05, 0.5, 0.95, 1.0):
        if values:
            place = max(0, int(np.ceil(share * len(values))) - 1)
            assert tally.quantile(share) == values[place]
            assert (tally.quantile(0.0), tally.mean()) == (values[0], pytest.approx(mean(values)))


def test_a_tally_rounds_to_its_step_and_leaves_out_what_is_no_number() -> None:
    tally = Tally(0.01)
    tally.add(np.array([1.0, 1.004, 1.336, np.nan, np.inf]))
    assert tally.values.tolist() == [1.0, 1.34]
    assert tally.counts.tolist() == [2, 1]


@given(st.sets(st.integers(1, 10**6), min_size=2), st.sampled_from([1.0, 0.01, 0.001]))
def test_every_value_lies_in_a_bin_and_no_bin_between_values(places: set[int], step: float) -> None:
    values = np.array(sorted(places)) * step
    edges, _ = bins(values, step)
    assert (np.diff(edges) > 0.999 * step).all()
    assert np.histogram(values, edges)[0].sum() == len(values)
    assert len(edges) <= 83


@pytest.mark.parametrize(
    ("value", "text"), [(950, "950"), (1500, "1.5k"), (2e6, "2M"), (3e9, "3G"), (0.25, "0.25")]
)
def test_short_numbers(value: float, text: str) -> None:
    assert short(value) == text


def rows_of(dataset: Path) -> list[dict[str, Any]]:
    tables = map(pq.read_table, sorted((dataset / "metadata").iterdir()))
    found: list[dict[str, Any]] = pa.concat_tables(tables).to_pylist()
    return found


def test_of_a_dataset_against_plain_counting(made: Path) -> None:
    found, rows = collect([made]), rows_of(made)
    assert (found.input, found.rows) == (56, 40)
    assert found.lost == {"not_an_image": 16}
    lengths = [len(row["caption"]) for row in rows]
    chars = found.quantities["caption_chars"].summary()
    assert (chars["min"], chars["max"]) == (min(lengths), max(lengths))
    assert chars["mean"] == pytest.approx(mean(lengths))
    words = found.quantities["caption_words"]
    assert words.mean() == pytest.approx(mean(len(row["caption"].split()) for row in rows))
    similarity = mean(row["similarity"] for row in rows)
    assert found.quantities["similarity"].mean() == pytest.approx(similarity, abs=0.0005)
    assert found.same_sha256 == 40 - len({row["sha256"] for row in rows}) > 0
    assert found.same_phash == 40 - len({row["phash"] for row in rows}) > 0
    without = sum(row["url"] is None for row in rows)
    assert (found.without_domain, sum(found.domains.values())) == (without, 40 - without)
    assert set(found.domains) == {"flickr.com", "i.pinimg.com", "example.org"}
    assert list(found.domains.values()) == sorted(found.domains.values(), reverse=True)


def test_of_a_selection(dataset: Path) -> None:
    rules = {"captions": {"min_words": 3}, "exact_duplicates": True, "split": {"val": 0.3}}
    curate(dataset, "some", parse_config(rules, CurateConfig, "test"))
    kept = pq.read_table(dataset / "selections" / "some.parquet")["key"].to_pylist()
    found = collect([dataset], "some")
    rows = [row for row in rows_of(dataset) if row["key"] in kept]
    assert (found.input, found.rows, found.same_sha256) == (40, len(rows), 0)
    assert found.quantities["caption_words"].quantile(0) >= 3
    assert sum(found.lost.values()) == 40 - len(rows)
    assert found.to_json()["dropped"] == found.lost
    part = collect([dataset], "some-val")
    assert part.input == found.rows
    assert part.lost == {"split": found.rows - part.rows}
    with pytest.raises(
        UserError, match=r"selection: got 'sme', expected one of .*: some, some-train"
    ):
        collect([dataset], "sme")
    with pytest.raises(UserError, match=r"name: got '\.\./x'"):
        collect([dataset], "../x")


def test_a_selection_that_was_changed_is_not_read(dataset: Path) -> None:
    curate(dataset, "a")
    record = dataset / "selections" / "a.json"
    data = json.loads(record.read_text())
    record.write_text(json.dumps({**data, "kept": 39}))
    with pytest.raises(UserError, match=r"a.json: was changed after it was written"):
        collect([dataset], "a")
    record.write_text(json.dumps({**data, "version": 2}))
    with pytest.raises(UserError, match="version: got 2, expected 1"):
        collect([dataset], "a")
    record.write_text(json.dumps(data))
    (dataset / "selections" / "a.parquet").write_bytes(b"x")
    with pytest.raises(UserError, match=r"a.parquet: cannot be read"):
        collect([dataset], "a")


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_the_figure_has_the_format_of_its_name(made: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "new" / f"figure{suffix}"
    found = collect([made])
    draw(found, path)
    data = path.read_bytes()
    draw(found, path)
    assert path.read_bytes() == data
    if suffix == ".png":
        with Image.open(path) as image:
            image.load()
            assert min(image.size) > 900
            assert len(image.getcolors(1 << 20) or []) > 20
    elif suffix == ".svg":
        assert b"</svg>" in data
    else:
        assert data.startswith(b"%PDF")


def test_a_figure_of_what_is_all_the_same(made: Path, tmp_path: Path) -> None:
    """One row: there is nothing to make a histogram of."""
    from dataclasses import replace

    found = collect([made])
    one = {name: Tally(tally.step) for name, tally in found.quantities.items()}
    for tally in one.values():
        tally.add(np.ones(1))
    alone = replace(found, quantities=one, domains={}, lost={}, rows=1)
    draw(alone, tmp_path / "one.svg")
    assert "of all:" in (tmp_path / "one.svg").read_text()


def test_figures_that_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"plot: got 'a.jpeg', expected a file named .png, .svg"):
        require_drawable(Path("a.jpeg"))
    (tmp_path / "a.png").mkdir()
    with pytest.raises(UserError, match="which is a folder"):
        require_drawable(tmp_path / "a.png")
