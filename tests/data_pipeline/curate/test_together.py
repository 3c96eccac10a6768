"""Several DATASETs curated as one: the same rows are kept as of one that holds them all."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curated import CONFIGS, EVERYTHING, PREPARE, config, drops, keys, rewrite, rows_of
from hypothesis import given, settings

from base.errors import UserError
from data_pipeline import cli
from data_pipeline.curate.possible import require_possible
from data_pipeline.curate.rules import apply_rules, split_rows
from data_pipeline.curate.run import curate_together
from data_pipeline.curate.together import open_together
from data_pipeline.embed import embed
from data_pipeline.pipeline import prepare, prepare_parts
from data_pipeline.schema.selection import drops_path, record_path
from data_pipeline.stats.collect import collect
from data_pipeline.verify import verify


@pytest.fixture(scope="module")
def made_parts(
    tmp_path_factory: pytest.TempPathFactory,
    ray_cluster: None,
    picture_bytes: Callable[..., bytes],
) -> list[Path]:
    """The rows of `made`, in two DATASETs; shared, so use `parts` to write."""
    folder = tmp_path_factory.mktemp("parts")
    pq.write_table(pa.Table.from_pylist(rows_of(picture_bytes)), folder / "in.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data_pipeline.plan.MAX_SHARDS", 3)
        made = prepare_parts([folder / "in.parquet"], folder / "out", "random:0", PREPARE)
        found = [Path(str(place)) for place, _ in made]
    assert [path.name for path in found] == ["out-000", "out-001"]
    return found


@pytest.fixture
def parts(made_parts: list[Path], tmp_path: Path) -> list[Path]:
    """Copies of them."""
    return [Path(shutil.copytree(part, tmp_path / part.name)) for part in made_parts]


def rows(dataset: Path) -> dict[str, int]:
    """Positions in the whole input, by key."""
    tables = [pq.read_table(path) for path in sorted((dataset / "metadata").iterdir())]
    table = pa.concat_tables(tables)
    return dict(zip(table["key"].to_pylist(), table["row"].to_pylist(), strict=True))


@settings(max_examples=25)
@given(CONFIGS)
def test_two_parts_keep_what_one_dataset_keeps(
    made: Path, made_parts: list[Path], rules: dict[str, Any]
) -> None:
    wanted = config(**rules, split={"val": 0.4, "distance": 2})
    found = []
    for datasets in ([made], made_parts):
        together = open_together(datasets)
        verdict = apply_rules(together, wanted, require_possible(together, wanted))
        kept = verdict.left()
        sides: list[Any] = []
        if len(kept) > 20:  # else a side may be empty
            split = split_rows(together, wanted, kept)
            sides = [split.train.tolist(), split.val.tolist(), split.groups]
        instead = None if verdict.instead is None else verdict.instead.tolist()
        found.append((kept.tolist(), verdict.counts(), instead, sides))
    assert found[0] == found[1]


def test_each_part_gets_its_rows_and_the_account_sums_to_all(
    dataset: Path, parts: list[Path]
) -> None:
    whole = curate_together([dataset], "all", config(**EVERYTHING))[0].selection
    done = [each.selection for each in curate_together(parts, "all", config(**EVERYTHING))]
    assert sum(each.input for each in done) == whole.input == 40
    assert sum(each.kept for each in done) == whole.kept
    for counts in zip(whole.rules, *(each.rules for each in done), strict=True):
        assert counts[0].dropped == sum(count.dropped for count in counts[1:])
    of_all = rows(dataset)
    for name in ("all", "all-train", "all-val"):
        expected = sorted(of_all[key] for key in keys(dataset, name))
        assert expected == sorted(rows(p)[key] for p in parts for key in keys(p, name))
    there = {part.name: rows(part) for part in parts}
    instead = {}
    for part in parts:
        for key, (rule, other) in drops(part, "all").items():
            name, _, number = (other or "").rpartition("/")
            stays = there[name or part.name][number] if other else None
            instead[there[part.name][key]] = (rule, stays)
    assert instead == {
        of_all[key]: (rule, of_all[other] if other else None)
        for key, (rule, other) in drops(dataset, "all").items()
    }
    assert any("/" in (other or "") for p in parts for _, other in drops(p, "all").values())
    for part in parts:
        assert verify(part).problems == ()
    assert not any(each.made for each in curate_together(parts, "all", config(**EVERYTHING)))
    with pytest.raises(UserError, match=r"made with another choice or order of DATASETs.*--repl"):
        curate_together(parts[:1], "all", config(**EVERYTHING))


def test_a_part_that_lacks_its_selection_is_made_anew(parts: list[Path]) -> None:
    rules = config(exact_duplicates=True)
    curate_together(parts, "again", rules)
    before = [record_path(part, "again").read_bytes() for part in parts]
    record_path(parts[1], "again").unlink()
    assert all(each.made for each in curate_together(parts, "again", rules))
    assert [record_path(part, "again").read_bytes() for part in parts] == before
    assert set(json.loads(before[0])["together"]) == {"out-000", "out-001"}


def test_the_command_tells_of_all_and_of_each(
    parts: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    names, rules = [str(part) for part in parts], ["exact_duplicates=true"]
    cli.curate(names, "a", overrides=rules)
    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    kept = [len(keys(part, "a")) for part in parts]
    assert shown == [
        "rule dropped left of input",
        "(input) 40",
        "exact_duplicates 5 35 12.5%",
        "(kept) 5 35 87.5%",
        *(
            f"{part}/selections/a.parquet: {count} of {len(rows(part))} rows"
            for part, count in zip(parts, kept, strict=True)
        ),
    ]
    cli.curate(names, "a", overrides=rules, json=True)
    told = json.loads(capsys.readouterr().out)["parts"]
    assert {name: (each["made"], each["kept"]) for name, each in told.items()} == {
        name: (False, count) for name, count in zip(names, kept, strict=True)
    }


@pytest.mark.parametrize("stand_in", ["elsewhere/000000001", "out-001/1", "out-001/00000000x"])
def test_verify_finds_a_stand_in_of_no_known_dataset(parts: list[Path], stand_in: str) -> None:
    curate_together(parts, "a", config(exact_duplicates=True))
    path = drops_path(parts[1], "a")
    table = pq.read_table(path)
    others = [stand_in, *table["kept_instead"].to_pylist()[1:]]
    rewrite(parts[1], "a", table.set_column(2, table.schema.field(2), [others]), path)
    expected = f"kept_instead: got {stand_in!r}, expected KEY or NAME/KEY"
    assert verify(parts[1]).problems == (f"selections/a.drops.parquet: {expected}",)


def test_statistics_of_two_parts_are_those_of_one(made: Path, made_parts: list[Path]) -> None:
    one, two = collect([made]), collect(made_parts)
    assert {**one.to_json(), "dataset": ""} == {**two.to_json(), "dataset": ""}
    assert (one.same_sha256 or 0) > sum(collect([part]).same_sha256 or 0 for part in made_parts)


def test_different_selections_of_one_name_are_not_added_up(parts: list[Path]) -> None:
    rules = config(exact_duplicates=True)
    curate_together(parts, "all", rules)
    assert collect(parts, "all").selection == "all"
    curate_together(parts[:1], "all", rules, replace=True)
    wanted = r"'all' of .*out-000 was made by itself, that of .*out-001 over out-000 .*, out-001"
    with pytest.raises(UserError, match=wanted):
        collect(parts, "all")
    curate_together(parts[1:], "all", config(), replace=True)
    with pytest.raises(UserError, match=r"of .*out-000 and of .*out-001 were made by different ru"):
        collect(parts, "all")


def test_a_renamed_folder_is_said_to_be_renamed(parts: list[Path]) -> None:
    rules = config(exact_duplicates=True)
    curate_together(parts, "all", rules)
    renamed = parts[1].rename(parts[1].with_name("other"))
    wanted = r"made with another name of a DATASET \(other, was out-001\);"
    with pytest.raises(UserError, match=wanted):
        curate_together([parts[0], renamed], "all", rules)


def test_numbers_of_different_types_are_compared(made_parts: list[Path], parts: list[Path]) -> None:
    for path in sorted((parts[1] / "metadata").iterdir()):
        table = pq.read_table(path)
        place = table.schema.get_field_index("original_width")
        wide = table["original_width"].cast(pa.float64())
        pq.write_table(table.set_column(place, "original_width", wide), path)
    wanted = config(
        prefer="original_width",
        thresholds={"original_width": {"in": [96, 80]}},
        exact_duplicates=True,
        caps={"original_width": 7},
    )
    left = []
    for datasets in (made_parts, parts):
        together = open_together(datasets)
        verdict = apply_rules(together, wanted, require_possible(together, wanted))
        left.append((verdict.left().tolist(), verdict.counts()))
    assert left[0] == left[1]


def test_a_copy_without_pictures_and_embeddings_is_enough(
    made_parts: list[Path], tmp_path: Path
) -> None:
    heavy = shutil.ignore_patterns("shards", "img_emb", "text_emb", "index")
    light = Path(shutil.copytree(made_parts[0], tmp_path / "light", ignore=heavy))
    assert not (light / "shards").exists()
    rules = config(exact_duplicates=True, phash_duplicates={"distance": 2})
    done = curate_together([light], "a", rules)[0].selection
    assert collect([light], "a").rows == done.kept


def test_what_cannot_be_compared_is_refused(
    parts: list[Path],
    tmp_path: Path,
    picture_bytes: Callable[..., bytes],
) -> None:
    with pytest.raises(UserError, match="two folders named 'out-000'"):
        open_together([parts[0], parts[0]])
    other = [{**row, "score": str(i)} for i, row in enumerate(rows_of(picture_bytes)[:4])]
    pq.write_table(pa.Table.from_pylist(other), tmp_path / "in.parquet")
    prepare([tmp_path / "in.parquet"], tmp_path / "other", "none", PREPARE)
    mixed = [parts[0], tmp_path / "other"]
    with pytest.raises(UserError, match=r"prefer: got a column of type string in .*/other, expect"):
        curate_together(mixed, "a", config(prefer="score"))
    with pytest.raises(UserError, match=r"embedding_duplicates: .*/other has no embeddings"):
        curate_together(mixed, "a", config(embedding_duplicates={}))
    embed(tmp_path / "other", "random:1")
    with pytest.raises(UserError, match=r"other has embeddings of random random:1, expected those"):
        curate_together(mixed, "a", config(embedding_duplicates={}))
    assert not (tmp_path / "other" / "selections").exists()
    kept = [each.selection.kept for each in curate_together(mixed, "a", config(domain_cap=1))]
    assert np.sum(kept) == 3 + 3  # hosts, and rows without one
