"""Selections of a real DATASET: sums, bytes, splits, what is refused, what verify finds."""

import io
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curated import CONFIGS, EVERYTHING, config, drops, keys, rewrite
from hypothesis import given, settings
from PIL import Image

from base.config import fingerprint
from base.errors import NothingUsable, UserError
from base.lease import Lease
from data_pipeline.config import PrepareConfig
from data_pipeline.curate.possible import require_possible
from data_pipeline.curate.rules import LEFT, NOBODY, apply_rules
from data_pipeline.curate.run import Curated, curate
from data_pipeline.curate.samples import open_samples
from data_pipeline.curate.together import open_together
from data_pipeline.embed import embed
from data_pipeline.pipeline import prepare
from data_pipeline.schema.dataset import metadata_path
from data_pipeline.schema.selection import (
    drops_path,
    read_selection,
    record_path,
    selected_keys,
    selection_path,
)
from data_pipeline.verify import verify


def run(dataset: Path, name: str, replace: bool = False, **rules: Any) -> Curated:
    return curate(dataset, name, config(**rules), replace=replace)


def metadata(dataset: Path) -> dict[str, dict[str, Any]]:
    rows = pa.concat_tables(map(pq.read_table, sorted((dataset / "metadata").iterdir())))
    return {row["key"]: row for row in rows.to_pylist()}


def test_everything_at_once_adds_up(dataset: Path) -> None:
    done = run(dataset, "all", **EVERYTHING).selection
    dropped = {rule.rule: rule.dropped for rule in done.rules}
    assert list(dropped) == [
        "thresholds.aspect",
        "thresholds.score",
        "captions.chars",
        "captions.drop_regex",
        "captions.languages",
        "exact_duplicates",
        "phash_duplicates",
        "embedding_duplicates",
        "domain_cap",
        "caps.tag",
    ]
    assert done.kept + sum(dropped.values()) == done.input == 40
    assert min(dropped[rule] for rule in ("captions.languages", "phash_duplicates")) > 0
    rows, gone = metadata(dataset), drops(dataset, "all")
    assert sorted([*keys(dataset, "all"), *gone]) == sorted(rows)
    assert keys(dataset, "all") == sorted(keys(dataset, "all"))
    assert list(gone) == sorted(gone)
    for rule, count in dropped.items():
        assert sum(name == rule for name, _ in gone.values()) == count
    for rule, instead in gone.values():
        assert (instead is not None) == rule.endswith("_duplicates")
        # whoever stayed at that rule may have gone by a later one
        if instead is not None and instead in gone:
            assert list(dropped).index(gone[instead][0]) > list(dropped).index(rule)
    sides = [keys(dataset, f"all-{part}") for part in ("train", "val")]
    assert sorted([*sides[0], *sides[1]]) == keys(dataset, "all")
    assert all(sides)
    assert verify(dataset).problems == ()
    assert selected_keys(dataset, "all").tolist() == [int(key) for key in keys(dataset, "all")]
    assert read_selection(dataset, "all-val").part_of == "all"


@pytest.mark.parametrize(
    ("rules", "is_kept"),
    [
        ({"thresholds": {"score": {"min": 0.3}}}, lambda r: (r["score"] or 0) >= 0.3),
        ({"thresholds": {"tag": {"in": ["good"]}}}, lambda r: r["tag"] == "good"),
        ({"thresholds": {"checked": {"equals": True}}}, lambda r: r["checked"]),
        ({"thresholds": {"min_side": {"min": 40}}}, lambda r: r["original_height"] >= 40),
        ({"thresholds": {"aspect": {"max": 2}}}, lambda r: r["original_height"] >= 48),
        ({"thresholds": {"similarity": {"min": 0}}}, lambda r: r["similarity"] >= 0),
        ({"captions": {"max_chars": 20}}, lambda r: len(r["caption"]) <= 20),
        ({"captions": {"min_words": 3}}, lambda r: len(r["caption"].split()) >= 3),
        (
            {"captions": {"keep_regex": "red|cat"}},
            lambda r: "red" in r["caption"] or "cat" in r["caption"],
        ),
    ],
)
def test_rules_on_rows_keep_what_plain_python_keeps(
    dataset: Path, rules: dict[str, Any], is_kept: Callable[[dict[str, Any]], bool]
) -> None:
    run(dataset, "a", **rules)
    expected = [key for key, row in metadata(dataset).items() if is_kept(row)]
    assert 0 < len(expected) < 40
    assert keys(dataset, "a") == expected


def test_no_rule_keeps_all(dataset: Path) -> None:
    assert run(dataset, "a").selection.kept == 40
    assert keys(dataset, "a") == list(metadata(dataset))
    assert drops(dataset, "a") == {}


@pytest.mark.parametrize("column", ["sha256", "phash"])
@pytest.mark.parametrize("prefer", [None, "score"])
def test_duplicates_leave_the_best_of_each_group(
    dataset: Path, column: str, prefer: str | None
) -> None:
    rule = {"exact_duplicates": True} if column == "sha256" else {"phash_duplicates": {}}
    run(dataset, "a", prefer=prefer, **rule)
    rows = metadata(dataset)

    def rank(key: str) -> tuple[float, str]:
        value = rows[key]["score"] if prefer else None
        return (-value if value is not None and value == value else float("inf"), key)

    groups: dict[str, list[str]] = {}
    for key, row in rows.items():
        groups.setdefault(row[column], []).append(key)
    best = {min(group, key=rank): group for group in groups.values()}
    assert keys(dataset, "a") == sorted(best)
    expected = {key: first for first, group in best.items() for key in group if key != first}
    assert {key: instead for key, (_, instead) in drops(dataset, "a").items()} == expected
    assert expected


def test_caps_count_hosts_and_values(dataset: Path) -> None:
    run(dataset, "a", domain_cap=3, caps={"tag": 2}, prefer="score")
    rows = metadata(dataset)
    kept = [rows[key] for key in keys(dataset, "a")]
    hosts = [row["url"].split("/")[2] for row in kept if row["url"]]
    assert sum("flickr" in host for host in hosts) <= 3
    assert sum(row["url"] is None for row in kept) > 0
    assert all(sum(row["tag"] == tag for row in kept) == 2 for tag in ("good", "bad"))
    assert sum(row["tag"] is None for row in kept) > 2
    rules = [rule for rule, _ in drops(dataset, "a").values()]
    assert rules.count("domain_cap") > 0 < rules.count("caps.tag")


def test_the_same_config_gives_the_same_bytes(
    made: Path, tmp_path: Path, tree: Callable[[Path], dict[str, str]]
) -> None:
    found = []
    for name, cores in (("one", 1), ("two", 2)):
        copy = Path(shutil.copytree(made, tmp_path / name))
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, set(sorted(before)[:cores]))
        try:
            run(copy, "a", **{**EVERYTHING, "embedding_duplicates": {"eps": 1e-4, "clusters": 4}})
        finally:
            os.sched_setaffinity(0, before)
        found.append(tree(copy))
    assert found[0] == found[1]
    assert len([name for name in found[0] if name.startswith("selections/")]) == 7
    assert all(found[0][name] == digest for name, digest in tree(made).items())


def test_thresholds_in_another_order_are_the_same_config(dataset: Path) -> None:
    first = {"score": {"min": 0.1}, "aspect": {"max": 2}}
    assert run(dataset, "a", thresholds=first).made
    assert not run(dataset, "a", thresholds=dict(reversed(first.items()))).made


def test_a_split_does_not_follow_the_order_of_the_input(
    tmp_path: Path, ray_cluster: None, picture_bytes: Callable[..., bytes]
) -> None:
    rows = []
    for seed in range(24):
        picture = picture_bytes(seed, 64, 64)
        again = io.BytesIO()
        Image.open(io.BytesIO(picture)).resize((48, 48)).save(again, "JPEG", quality=50)
        rows += [{"image": data, "caption": f"{seed}"} for data in (picture, again.getvalue())]
    sides: list[dict[str, str]] = []
    for name, order in (("one", list(range(48))), ("two", random.Random(0).sample(range(48), 48))):
        table = pa.Table.from_pylist([rows[place] for place in order])
        pq.write_table(table, tmp_path / f"{name}.parquet")
        settings = PrepareConfig(image_size=32, samples_per_shard=20)
        prepare([tmp_path / f"{name}.parquet"], tmp_path / name, "none", settings)
        for distance in (0, 6):
            split = {"val": 0.4, "distance": distance}
            run(tmp_path / name, f"d{distance}", split=split)
        found = metadata(tmp_path / name)
        for distance in (0, 6):
            side = {}
            for part in ("train", "val"):
                for key in keys(tmp_path / name, f"d{distance}-{part}"):
                    side[found[key]["sha256"]] = part
            sides.append(side)
            for a in found.values():
                for b in found.values():
                    if (int(a["phash"], 16) ^ int(b["phash"], 16)).bit_count() <= distance:
                        assert side[a["sha256"]] == side[b["sha256"]]
    assert sides[0] == sides[2]
    assert sides[1] == sides[3]
    assert set(sides[0].values()) == {"train", "val"}


def test_a_name_that_is_there(dataset: Path, tree: Callable[[Path], dict[str, str]]) -> None:
    first = run(dataset, "a", exact_duplicates=True, split={"val": 0.3})
    before = tree(dataset)
    assert run(dataset, "a", exact_duplicates=True, split={"val": 0.3}) == Curated(
        first.selection, made=False
    )
    with pytest.raises(
        UserError, match=r"a.json: is there, made with another domain_cap.*--replace"
    ):
        run(dataset, "a", exact_duplicates=True, split={"val": 0.3}, domain_cap=3)
    assert tree(dataset) == before
    with pytest.raises(UserError, match="'a-val', which is a part of the selection 'a'"):
        run(dataset, "a-val", replace=True)
    assert run(dataset, "a", replace=True, domain_cap=3).made
    assert not record_path(dataset, "a-train").exists()
    assert verify(dataset).problems == ()
    record_path(dataset, "a").write_text("{}")
    with pytest.raises(UserError, match=r"a.json: version: got None, expected 1; give --replace"):
        run(dataset, "a")
    assert run(dataset, "a", replace=True).made
    run(dataset, "b-val")
    with pytest.raises(UserError, match="'b-val' is a selection of its own already"):
        run(dataset, "b", split={"val": 0.3}, replace=True)


def test_a_selection_of_another_dataset_is_noticed(made: Path, dataset: Path) -> None:
    run(dataset, "a", domain_cap=3)
    record = json.loads(record_path(dataset, "a").read_text())
    record["dataset"]["tars_sha256"] = "0" * 64
    del record["fingerprint"]
    record["fingerprint"] = fingerprint(record)
    record_path(dataset, "a").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    assert "is a selection of another DATASET" in verify(dataset).problems[0]
    with pytest.raises(UserError, match="made with another DATASET"):
        run(dataset, "a", domain_cap=3)


def test_what_a_kill_leaves_is_made_anew(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, tree: Callable[[Path], dict[str, str]]
) -> None:
    run(dataset, "a", **EVERYTHING)
    whole = tree(dataset)
    for file in [*(dataset / "selections").iterdir()]:
        kept = file.read_bytes()
        file.unlink()
        if file.suffix == ".parquet":  # cut, as a full disk may leave it
            file.write_bytes(kept[:-1])
        assert verify(dataset).problems
        assert run(dataset, "a", **EVERYTHING).made
        assert tree(dataset) == whole
    calls = []

    def dies(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        os.rename(*arguments)

    monkeypatch.setattr("data_pipeline.curate.run.os.replace", dies)
    with pytest.raises(KeyboardInterrupt):
        run(dataset, "b", domain_cap=3, split={"val": 0.5})
    monkeypatch.undo()
    assert not record_path(dataset, "b").exists()
    assert not (dataset / ".work").exists()
    assert any("does not belong" in problem for problem in verify(dataset).problems)
    assert run(dataset, "b", domain_cap=3, split={"val": 0.5}).made
    assert verify(dataset).problems == ()


def test_verify_finds_every_change(dataset: Path) -> None:
    run(dataset, "a", **EVERYTHING)
    generator = random.Random(0)
    for path in sorted((dataset / "selections").iterdir()):
        original = path.read_bytes()
        for _ in range(5):
            damaged = bytearray(original)
            damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
            path.write_bytes(damaged)
            assert verify(dataset).problems, f"{path} was changed and nobody saw"
        path.write_bytes(original)
    (dataset / "selections" / "notes.txt").write_text("x")
    assert verify(dataset).problems == ("selections/notes.txt: does not belong to the DATASET",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda keys: keys[::-1], "not nine digits in ascending order"),
        (lambda keys: [*keys[:-1], "000099999"], "key 000099999 is not in the DATASET"),
        (lambda keys: sorted([*keys, "000015555"]), "key 000015555 is not in the DATASET"),
        (lambda keys: keys[:-1], "rows: got"),
        (lambda keys: ["0", *keys[1:]], "not nine digits"),
    ],
)
def test_verify_finds_what_a_clever_hand_changed(
    dataset: Path, change: Callable[[list[str]], list[str]], message: str
) -> None:
    run(dataset, "a", domain_cap=3)
    path = selection_path(dataset, "a")
    schema = pq.read_schema(path)
    rewrite(dataset, "a", pa.table([change(keys(dataset, "a"))], schema=schema), path)
    assert any(message in problem for problem in verify(dataset).problems)
    drop_file = drops_path(dataset, "a")
    table = pq.read_table(drop_file)
    other = table.set_column(1, table.schema.field(1), [["nothing"] * table.num_rows])
    rewrite(dataset, "a", other, drop_file)
    assert any("drops by rule" in problem for problem in verify(dataset).problems)


@pytest.mark.parametrize(
    ("name", "rules", "message"),
    [
        ("../a", {}, "name: got '../a', expected at most 100 letters, digits, - and _"),
        ("a.drops", {}, "name: got 'a.drops'"),
        ("", {}, "name: got ''"),
        (
            "a",
            {"prefer": "tag"},
            "prefer: got column 'tag' of type string, expected one of numbers",
        ),
        ("a", {"prefer": "scor"}, "prefer: got 'scor', expected a metadata column (score, tag"),
        ("a", {"caps": {"captions": 3}}, "caps.captions: got a column of type list"),
        ("a", {"caps": {"who": 3}}, "caps.who: got 'who', expected a metadata column"),
        (
            "a",
            {"embedding_duplicates": {"set": "third"}},
            "embedding_duplicates.set: got 'third', expected one of /",
        ),
        (
            "a",
            {"embedding_duplicates": {"clusters": 50}},
            "embedding_duplicates.clusters: got 50, expected at most 40",
        ),
        ("a", {"split": {"val": 1e-9}}, "split.val: got 1e-09, which leaves val empty"),
    ],
)
def test_mistakes(dataset: Path, name: str, rules: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        run(dataset, name, **rules)
    assert str(error.value).startswith(message)
    assert error.value.exit_code == 2
    assert not (dataset / "selections").exists()


def test_nothing_left_is_told_by_its_own_code(dataset: Path) -> None:
    with pytest.raises(NothingUsable, match=r"leave none of 40 rows; thresholds.score dropped 40"):
        run(dataset, "a", thresholds={"score": {"min": 5}}, domain_cap=2, phash_duplicates={})
    assert not (dataset / "selections").exists()


def test_without_embeddings_their_rules_are_refused(
    tmp_path: Path, ray_cluster: None, pairs_folder: Callable[[Path, int], Path]
) -> None:
    folder = pairs_folder(tmp_path / "in", 3)
    prepare([folder], tmp_path / "out", "none", PrepareConfig(image_size=32))
    assert run(tmp_path / "out", "plain", domain_cap=1).made
    embed(tmp_path / "out", "random:0")
    assert not run(tmp_path / "out", "plain", domain_cap=1).made
    assert verify(tmp_path / "out").problems == ()
    prepare([folder], tmp_path / "out2", "none", PrepareConfig(image_size=32))
    (tmp_path / "out").rename(tmp_path / "embedded")
    (tmp_path / "out2").rename(tmp_path / "out")
    for rules, field in (
        ({"thresholds": {"similarity": {"min": 0}}}, "thresholds.similarity"),
        ({"prefer": "similarity"}, "prefer"),
        ({"embedding_duplicates": {}}, "embedding_duplicates"),
    ):
        with pytest.raises(UserError, match=f"^{field}: .*/out has no embeddings"):
            run(tmp_path / "out", "a", **rules)
    with pytest.raises(UserError, match=r"expected one of .*/embeddings: there is none"):
        run(tmp_path / "out", "a", embedding_duplicates={"set": "x"})
    (tmp_path / "out" / "dataset.json").unlink()
    with pytest.raises(UserError, match="preparation is not finished"):
        run(tmp_path / "out", "a")
    with pytest.raises(UserError, match="not a DATASET"):
        run(folder, "a")


def test_a_dataset_in_use_and_a_damaged_one_are_refused(dataset: Path) -> None:
    path = metadata_path(dataset, 0)
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    with pytest.raises(UserError, match="rows: got 15, expected 16; run `unclip data verify`"):
        run(dataset, "a", exact_duplicates=True)
    broken = table.set_column(table.schema.get_field_index("phash"), "phash", [["x" * 16] * 16])
    pq.write_table(broken, path)
    with pytest.raises(UserError, match=r"metadata_00000.parquet: rows that are no hash"):
        run(dataset, "a", phash_duplicates={})
    path.write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"metadata_00000.parquet: cannot be read"):
        run(dataset, "a", exact_duplicates=True)
    lock = {"host": "elsewhere", "pid": 1, "namespace": "", "process_start": "", "job": None}
    lock |= {"start": 0.0, "renewed": 4e9, "token": "x"}
    (dataset / "unclip.lock").write_text(json.dumps(lock))
    with pytest.raises(UserError, match="in use by host elsewhere"):
        run(dataset, "a")


def test_the_lease_is_given_back(dataset: Path) -> None:
    run(dataset, "a", domain_cap=2)
    assert not (dataset / "unclip.lock").exists()
    with Lease(dataset):
        assert run(dataset, "b").made


def test_keys_of_rows_and_rows_of_keys(made: Path) -> None:
    samples = open_samples(made)
    found = samples.keys(np.arange(samples.total))
    assert [f"{key:09d}" for key in found] == list(metadata(made))
    assert samples.rows(found).tolist() == list(range(samples.total))
    assert samples.rows(np.array([16, 10_000, 40_000, -1, 10**12])).tolist() == [-1] * 5


@settings(max_examples=40)
@given(CONFIGS)
def test_whatever_the_rules_drops_and_kept_are_the_input(made: Path, rules: dict[str, Any]) -> None:
    samples = open_together([made])
    wanted = config(**rules)
    verdict = apply_rules(samples, wanted, require_possible(samples, wanted))
    assert len(verdict.left()) + sum(rule.dropped for rule in verdict.counts()) == samples.total
    for row, rule in enumerate(verdict.rule.tolist()):
        instead = NOBODY if verdict.instead is None else int(verdict.instead[row])
        if rule and verdict.rules[rule - 1][0].endswith("_duplicates"):
            assert verdict.rule[instead] == LEFT or verdict.rule[instead] > rule
        else:
            assert instead == NOBODY
