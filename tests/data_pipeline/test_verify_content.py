"""`verify` proves a shard's content: what was changed is found though the commit has its hash."""

import datetime
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from base.errors import UserError
from base.files import read_json, sha256_file, write_json
from data_pipeline import columns
from data_pipeline.check_sample import agrees
from data_pipeline.config import PrepareConfig
from data_pipeline.embed import embed
from data_pipeline.pipeline import prepare
from data_pipeline.schema.dataset import METADATA_SCHEMA, FileRecord, read_dataset
from data_pipeline.search.build import build
from data_pipeline.search.embeddings import open_embeddings
from data_pipeline.search.find import find
from data_pipeline.search.layout import IndexRecord, back_end
from data_pipeline.shards import TarWriter, write_parquet
from data_pipeline.verify import verify

METADATA = "metadata/metadata_00000.parquet"
TAR = "shards/00000.tar"
SMALL = PrepareConfig(image_size=32, samples_per_shard=2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """Three pictures of a table in two shards, with columns whose JSON is not their own form."""
    place = tmp_path_factory.mktemp("content")
    picture = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(noise).save(picture, "PNG")
    day = datetime.datetime(2020, 2, 3, 4, 5, 6, 789)
    table = pa.table(
        {
            "image": [picture.getvalue()] * 3,
            "caption": ["one", "two", "three"],
            "width": [7, None, 9],  # becomes input_width
            "score": [0.1, float("nan"), None],
            "day": pa.array([day, None, day], pa.timestamp("us")),
            "price": [Decimal("1.50"), Decimal("2.00"), None],
            "bytes": [b"\xff\x00", b"", None],
            "tags": [{"a": [1, 2], "b": None}, None, {"a": [], "b": "x"}],
        }
    )
    pq.write_table(table, place / "in.parquet")
    prepare([place / "in.parquet"], place / "dataset", "random:0", SMALL)
    return place / "dataset"


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "dataset"))


def recommit(copy: Path, name: str) -> None:
    """Makes the commit agree with a changed file."""
    path = copy / "commits" / "00000.json"
    commit = read_json(path)
    size = (copy / name).stat().st_size
    commit["files"][name] |= {"sha256": sha256_file(copy / name), "bytes": size}
    write_json(path, commit)


def with_table(copy: Path, table: pa.Table) -> None:
    (copy / METADATA).unlink()
    write_parquet(copy / METADATA, table)
    recommit(copy, METADATA)


def changed(table: pa.Table, name: str, value: Any) -> pa.Table:
    """The first row has another value."""
    place = table.schema.get_field_index(name)
    field = table.schema.field(place)
    values = [value, *table[name].to_pylist()[1:]]
    return table.set_column(place, field, pa.array(values, field.type))


def with_json(copy: Path, change: Callable[[dict[str, Any]], bytes]) -> None:
    """Writes tar and metadata anew, every KEY.json changed; the JSON's own order stays."""
    table = pq.read_table(copy / METADATA)
    data, places = (copy / TAR).read_bytes(), table.to_pylist()
    (copy / TAR).unlink()
    with TarWriter(copy / TAR) as tar:
        for row in places:
            for suffix in ("jpg", "txt", "json"):
                start = row[f"{suffix}_offset"]
                body = data[start : start + row[f"{suffix}_length"]]
                body = change(json.loads(body)) if suffix == "json" else body
                row[f"{suffix}_offset"] = tar.add(f"{row['key']}.{suffix}", body)
                row[f"{suffix}_length"] = len(body)
    with_table(copy, pa.Table.from_pylist(places, schema=table.schema))
    recommit(copy, TAR)


def test_columns_of_every_kind_agree_with_their_json(whole: Path) -> None:
    assert verify(whole).problems == ()
    assert {"input_width", "day", "price", "tags"} <= set(
        pq.read_schema(whole / METADATA).names[len(METADATA_SCHEMA) :]
    )


def test_a_phash_that_is_not_the_pictures_is_found(copy: Path) -> None:
    table = pq.read_table(copy / METADATA)
    real = table["phash"][0].as_py()
    with_table(copy, changed(table, "phash", "0" * 16))
    assert verify(copy).problems == (f"{TAR}: 000000000: phash of .json and metadata differ",)
    other = table.set_column(
        table.schema.get_field_index("phash"), table.schema.field("phash"), [["0" * 16] * 2]
    )
    with_table(copy, other)
    with_json(copy, lambda told: columns.json_text({**told, "phash": "0" * 16}).encode())
    assert verify(copy).problems[0] == (
        f"{TAR}: 000000000: phash: the picture's is {real}, metadata says {'0' * 16}"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("original_width", 61),
        ("height", 33),
        ("input_width", 8),
        ("input_width", None),
        ("score", 0.2),
        ("day", datetime.datetime(2020, 2, 3, 4, 5, 7)),
        ("day", None),
        ("price", Decimal("1.51")),
        ("bytes", b"\xff"),
        ("tags", {"a": [1, 3], "b": None}),
    ],
)
def test_a_value_that_is_not_the_jsons_is_found(copy: Path, name: str, value: Any) -> None:
    with_table(copy, changed(pq.read_table(copy / METADATA), name, value))
    assert verify(copy).problems == (f"{TAR}: 000000000: {name} of .json and metadata differ",)


def test_json_of_another_order_or_spacing_is_found(copy: Path) -> None:
    expected = f"{TAR}: 000000000: .json is not written as we write it: it was changed"
    with_json(copy, lambda told: columns.json_text(dict(sorted(told.items()))).encode())
    assert verify(copy).problems[0] == expected
    with_json(copy, lambda told: json.dumps(told).encode())
    assert verify(copy).problems[0] == expected


def test_a_source_without_sides_is_found(copy: Path) -> None:
    with_table(copy, changed(pq.read_table(copy / METADATA), "original_height", 0))
    assert f"{METADATA}: original_height has values below 1" in verify(copy).problems


def test_metadata_in_several_row_groups_is_found(copy: Path) -> None:
    pq.write_table(pq.read_table(copy / METADATA), copy / METADATA, row_group_size=1)
    recommit(copy, METADATA)
    assert verify(copy).problems == (f"{METADATA}: row groups: got 2, expected one with all rows",)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (datetime.datetime(2020, 1, 1, 3), pa.timestamp("ns")),
        (datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc), pa.timestamp("us", "UTC")),
        (datetime.date(2020, 1, 1), pa.string()),
        (datetime.timedelta(seconds=3), pa.duration("ns")),
        (float("nan"), pa.string()),
        (float("inf"), pa.float32()),
        (0.1, pa.float32()),
        ("text", pa.float64()),
        (2**70, pa.int64()),
        (True, pa.int64()),
        (Decimal("1.50"), pa.decimal128(10, 4)),
        (Decimal("1.50"), pa.float64()),
        (3, pa.decimal128(10, 2)),
        ("ab", pa.binary()),
        ({"a": datetime.date(2020, 1, 1)}, pa.struct([("a", pa.date32()), ("b", pa.string())])),
        ([("k", 1)], pa.map_(pa.string(), pa.int64())),
        ({"x": [1, float("nan")]}, pa.string()),
        ("\ud800", pa.string()),
    ],
)
def test_what_a_wider_column_makes_of_a_value_agrees(value: Any, kind: pa.DataType) -> None:
    told = json.loads(columns.json_text(value).encode("utf-8", "replace"))
    assert agrees(told, columns.as_array([value], kind)[0].as_py(), kind)


@pytest.mark.parametrize(
    ("told", "value", "kind"),
    [
        ("b", "a", pa.string()),
        (None, "a", pa.string()),
        ("null", None, pa.string()),
        (3, 4, pa.int64()),
        (3, None, pa.int64()),
        (None, 3, pa.int64()),
        ("1.5", 2.5, pa.float64()),
        ("2020-01-01", datetime.date(2020, 1, 2), pa.date32()),
        ("2020-01-01", None, pa.date32()),
        ("YQ==", b"b", pa.binary()),
        ("YQ==", None, pa.binary()),
        ({"a": 1}, {"a": None}, pa.struct([("a", pa.int64())])),
    ],
)
def test_what_no_value_of_the_input_can_be_does_not_agree(
    told: Any, value: Any, kind: pa.DataType
) -> None:
    assert not agrees(told, value, kind)


def test_embeddings_that_are_missing_are_told_first(whole: Path, copy: Path) -> None:
    (copy / TAR).unlink()
    prepare([whole.parent / "in.parquet"], copy, "none", SMALL)
    assert read_dataset(copy).clip is None
    assert verify(copy).problems == (
        "dataset.json: embeddings of 1 of 2 shards are missing (the first is shard 00000); "
        f"run `unclip data embed {copy} --clip CLIP` again",
        "img_emb/img_emb_00000.npy: does not belong to the DATASET",  # of the lost pictures
        "text_emb/text_emb_00000.npy: does not belong to the DATASET",
    )
    embed(copy, "random:0")
    assert verify(copy).whole


def with_index(dataset: Path) -> IndexRecord:
    """Gives the DATASET an index whose files are not looked into."""
    folder, opened = dataset / "index", open_embeddings(dataset)
    folder.mkdir()
    files = {}
    for name in ("image.index", "text.index"):
        (folder / name).write_bytes(b"rows of the index")
        files[name] = FileRecord(sha256_file(folder / name), 17, opened.rows)
    record = IndexRecord(
        *(1, None, opened.clip, opened.info.plan_fingerprint, opened.fingerprint(), opened.rows),
        *("4G", {"image": "Flat", "text": "Flat"}, files),
    )
    write_json(folder / "index.json", record.to_json())
    write_json(folder / "indices_paths.json", back_end(None))
    (folder / "metadata").symlink_to("../metadata")
    return record


def test_a_damaged_index_is_found_and_how_to_make_it_again(copy: Path, tmp_path: Path) -> None:
    record, folder = with_index(copy), copy / "index"
    assert verify(copy).problems == ()
    assert verify(Path(shutil.copytree(copy, tmp_path / "without_links"))).whole
    again = f"; `unclip data index {copy}` makes it anew"

    def told_after(name: str, data: bytes | None) -> list[str]:
        before = (folder / name).read_bytes()
        (folder / name).unlink()
        if data is not None:
            (folder / name).write_bytes(data)
        told = list(verify(copy).problems)
        (folder / name).write_bytes(before)
        return told

    assert told_after("text.index", None) == [f"index/text.index: is missing{again}"]
    assert told_after("image.index", b"cut") == [
        f"index/image.index: is damaged: 3 bytes, expected 17{again}"
    ]
    assert told_after("image.index", b"Rows of the index") == [
        f"index/image.index: is damaged: its SHA-256 is not the one of index.json{again}"
    ]
    assert told_after("index.json", None) == [
        f"index/index.json: is missing: the index is not whole{again}"
    ]
    assert told_after("index.json", b"{")[0].startswith("index/index.json: not JSON")
    assert "not a record of an index" in told_after("index.json", b'{"version": 1}')[0]
    assert told_after("indices_paths.json", b"{}") == [
        f"index/indices_paths.json: is not written as we write it: it was changed{again}"
    ]
    for changes in ({"rows": 2}, {"plan_fingerprint": "x"}, {"embeddings_fingerprint": "x"}):
        other = replace(record, **changes)  # type: ignore[arg-type]
        text = json.dumps(other.to_json(), indent=2, ensure_ascii=False) + "\n"
        assert len(told_after("index.json", text.encode())) in (1, 3)
    (folder / "stray").mkdir()
    (folder / "stray" / "x").write_bytes(b"x")
    assert verify(copy).problems == ("index/stray/x: does not belong to the DATASET",)


def test_an_index_whose_bytes_changed_is_not_taken_for_made(copy: Path, tmp_path: Path) -> None:
    """Nothing but its hash tells; without autofaiss, making it again is refused."""
    record = with_index(copy)
    assert build(copy, environment=tmp_path / "none") == (record, False)
    (copy / "index" / "image.index").write_bytes(b"Rows of the index")
    with pytest.raises(UserError, match="has no autofaiss"):
        build(copy, environment=tmp_path / "none")


def test_a_search_tells_a_damaged_index_from_none(copy: Path) -> None:
    assert "there is no index" in find(copy, "x", "random:0").why
    with_index(copy)
    (copy / "index" / "image.index").write_bytes(b"cut")
    assert find(copy, "x", "random:0").why == (
        "the index cannot be used: image.index is damaged: 3 bytes, expected 17 "
        "(`unclip data index` makes it anew)"
    )
    (copy / "index" / "index.json").unlink()
    assert "damaged: index.json is missing" in find(copy, "x", "random:0").why
