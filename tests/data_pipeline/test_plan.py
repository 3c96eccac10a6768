"""The plan covers every row once, in order, and holds a resume to what was begun."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.errors import UserError
from base.places import place
from data_pipeline import plan
from data_pipeline.config import PrepareConfig
from data_pipeline.fetch import FetchConfig
from data_pipeline.fetch.config import LISTS, PACE
from data_pipeline.plan import TooManyShards, cut, persist, plan_fingerprint, planned_rows
from data_pipeline.schema.dataset import (
    KEYS_PER_SHARD,
    MAX_SHARDS,
    PLACES_FILE,
    key_position,
    sample_key,
)
from data_pipeline.sources import Source
from data_pipeline.whereabouts import find_inputs


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20), st.integers(1, 60))
def test_cut_covers_every_row_once_in_order(rows: list[int], per_shard: int) -> None:
    shards = cut(rows, per_shard)
    covered = [
        (part.source, part.first + i)
        for plan in shards
        for part in plan.slices
        for i in range(part.count)
    ]
    assert covered == [(source, row) for source, count in enumerate(rows) for row in range(count)]
    assert [plan.shard for plan in shards] == list(range(len(shards)))
    assert all(plan.count == per_shard for plan in shards[:-1])
    assert all(0 < plan.count <= per_shard for plan in shards)
    starts = [sum(plan.count for plan in shards[:i]) for i in range(len(shards))]
    assert [plan.first_row for plan in shards] == starts


@given(st.lists(st.integers(0, 50), min_size=1, max_size=9), st.integers(1, 9), st.integers(1, 7))
def test_parts_cover_every_row_once_in_order(rows: list[int], per_shard: int, most: int) -> None:
    total = sum(rows)
    parts = -(-total // (most * per_shard))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "MAX_SHARDS", most)
        found = [cut(rows, per_shard, part) for part in range(parts)]
    assert all([p.shard for p in shards] == list(range(len(shards))) for shards in found)
    assert all(len(shards) == most for shards in found[:-1])
    assert all(0 < len(shards) <= most for shards in found)
    joined = [(p.first_row, p.slices) for shards in found for p in shards]
    assert joined == [(p.first_row, p.slices) for p in cut(rows, per_shard)]


def test_too_many_shards_are_refused_with_the_remedy(tmp_path: Path) -> None:
    config = PrepareConfig(samples_per_shard=10)
    assert len(cut([MAX_SHARDS * 10], 10)) == MAX_SHARDS
    with pytest.raises(TooManyShards, match="samples_per_shard: 2000001 rows") as raised:
        persist(tmp_path, [_source("a", MAX_SHARDS * 20 + 1, "x")], config)
    assert raised.value.parts == 3
    assert not list(tmp_path.iterdir())


@given(st.integers(0, MAX_SHARDS - 1), st.integers(0, KEYS_PER_SHARD - 1))
def test_keys_are_nine_digits_that_sort_as_positions(shard: int, row: int) -> None:
    key = sample_key(shard, row)
    assert len(key) == 9
    assert key.isdecimal()
    assert key_position(key) == (shard, row)
    if row + 1 < KEYS_PER_SHARD:
        assert sample_key(shard, row + 1) > key


def _source(name: str, rows: int, fingerprint: str) -> Source:
    return Source("pairs", name, f"/{name}", rows, fingerprint, "", pa.schema([]))


def test_a_plan_is_persisted_and_refuses_what_changed(tmp_path: Path) -> None:
    sources, config = [_source("a", 5, "x"), _source("b", 4, "y")], PrepareConfig()
    config = config.model_copy(update={"samples_per_shard": 4})
    persist(tmp_path, sources, config)
    table = pq.read_table(tmp_path / "plan" / "plan.parquet")
    assert table.to_pylist() == [
        {"shard": 0, "source": "a", "first_row": 0, "count": 4},
        {"shard": 1, "source": "a", "first_row": 4, "count": 1},
        {"shard": 1, "source": "b", "first_row": 0, "count": 3},
        {"shard": 2, "source": "b", "first_row": 3, "count": 1},
    ]
    assert planned_rows(tmp_path) == [4, 4, 1]
    before = plan_fingerprint(tmp_path)
    persist(tmp_path, sources, config)
    assert plan_fingerprint(tmp_path) == before
    with pytest.raises(UserError, match="image_size 256, now 64"):
        persist(tmp_path, sources, config.model_copy(update={"image_size": 64}))
    with pytest.raises(UserError, match=r"b: changed since .* \(4 rows then, 6 now\)"):
        persist(tmp_path, [sources[0], _source("b", 6, "z")], config)
    with pytest.raises(UserError, match=r"begun with 2 inputs \(a, b\), now 1 input \(a\)"):
        persist(tmp_path, sources[:1], config)
    with pytest.raises(
        UserError, match=r"begun with b, now c \(4 rows as then, but other names or"
    ):
        persist(tmp_path, [sources[0], _source("c", 4, "z")], config)
    table_now = replace(_source("b", 6, "z"), kind="table")
    with pytest.raises(UserError, match=r"b: changed since .* \(pairs then, table now\)"):
        persist(tmp_path, [sources[0], table_now], config)


def test_where_the_inputs_lie_is_noted_beside_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside what is hashed, so that the same inputs elsewhere have the same plan."""
    prints = set()
    for name in ("one", "two"):
        (tmp_path / name / "in").mkdir(parents=True)
        lies = replace(_source("in", 5, "x"), path=str(tmp_path / name / "in"))
        persist(tmp_path / f"{name}-out", [lies], PrepareConfig())
        prints.add(plan_fingerprint(tmp_path / f"{name}-out"))
    assert len(prints) == 1
    out = tmp_path / "one-out"
    assert find_inputs(out, ["in"]) == [tmp_path / "one" / "in"]
    persist(out, [lies], PrepareConfig())  # the same input, by now in the other place
    assert find_inputs(out, ["in"]) == [tmp_path / "two" / "in"]
    (tmp_path / "two" / "in").rmdir()
    monkeypatch.chdir(tmp_path / "one")
    assert find_inputs(out, ["in"]) == [tmp_path / "one" / "in"]
    (out / PLACES_FILE).write_text('["damaged')
    assert find_inputs(out, ["in"]) == [tmp_path / "one" / "in"]
    (out / PLACES_FILE).unlink()  # as in earlier versions
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "two")
    assert find_inputs(out, ["in"]) == [tmp_path / "in"]
    (tmp_path / "in").rmdir()
    looked = f"looked for {tmp_path / 'two' / 'in'}, {tmp_path / 'in'}"
    with pytest.raises(UserError, match=f"^in: no such file or folder, .*made of it; {looked}$"):
        find_inputs(out, ["in"])
    assert find_inputs(out, ["s3://bucket/in"]) == [place("s3://bucket/in")]


def test_a_run_that_goes_on_may_be_more_patient_but_not_fetch_something_else(
    tmp_path: Path,
) -> None:
    sources, config = [_source("a", 5, "x")], PrepareConfig()
    persist(tmp_path, sources, config)
    before = plan_fingerprint(tmp_path)

    def changed(**fetch: object) -> PrepareConfig:
        return config.model_copy(update={"fetch": config.fetch.model_copy(update=fetch)})

    persist(tmp_path, sources, changed(**dict.fromkeys(PACE, 9)))
    assert plan_fingerprint(tmp_path) == before
    others = set(type(config.fetch).model_fields) - set(PACE) - set(LISTS)
    assert others == {
        "redirects", "max_bytes", "user_agent", "robots", "opt_out_tags", "allow_private",
    }  # fmt: skip
    for name in others:
        with pytest.raises(UserError, match=rf"begun with fetch\.{name} "):
            persist(tmp_path, sources, changed(**{name: "other"}))


@pytest.mark.parametrize("name", LISTS)
def test_an_opt_out_list_may_move_but_not_change(name: str, tmp_path: Path) -> None:
    sources, digest = [_source("a", 5, "x")], "0" * 32
    (tmp_path / "one").write_text(f"{digest}\n")
    (tmp_path / "two").write_text(f"{digest}\n")

    def listed(path: Path | None) -> PrepareConfig:
        return PrepareConfig(fetch=FetchConfig(**{name: path}))

    persist(tmp_path / "out", sources, listed(tmp_path / "one"))
    before = plan_fingerprint(tmp_path / "out")
    persist(tmp_path / "out", sources, listed(tmp_path / "two"))
    assert plan_fingerprint(tmp_path / "out") == before
    (tmp_path / "two").write_text(f"{digest}\n{digest[::-1]}1")
    for other in (tmp_path / "two", None):
        with pytest.raises(UserError, match=rf"fetch\.{name}: the list changed since .* was begun"):
            persist(tmp_path / "out", sources, listed(other))
    persist(tmp_path / "free", sources, listed(None))
    with pytest.raises(UserError, match=rf"fetch\.{name}: the list changed"):
        persist(tmp_path / "free", sources, listed(tmp_path / "one"))
