"""Nothing of an input is left out, cut or passed over without a word."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_sources import fill, reason, rows_of, write_tar

from base.errors import UserError
from data_pipeline import columns, sources
from data_pipeline.check_sample import agrees
from data_pipeline.config import ColumnsConfig
from data_pipeline.curate.groups import hosts
from data_pipeline.sources import Source
from data_pipeline.sources.roles import key_column

MANY = 300  # objects before the one that is unlike them


def sidecar(number: int) -> dict[str, Any]:
    if number < MANY:
        return {"score": 5, "late": None}
    return {"score": 5.5, "late": 0.5, "new": "here", "huge": 2**70}


def as_pairs(place: Path) -> Path:
    files: dict[str, bytes | str] = {}
    for number in range(MANY + 1):
        name = f"{number:04d}"
        files |= {f"{name}.jpg": "J", f"{name}.txt": "c"}
        files[f"{name}.json"] = json.dumps(sidecar(number))
    return fill(place / "pairs", files)


def as_tar(place: Path) -> Path:
    members = []
    for number in range(MANY + 1):
        told = json.dumps(sidecar(number)).encode()
        name = f"{number:04d}"
        members += [(f"{name}.jpg", b"J"), (f"{name}.txt", b"c"), (f"{name}.json", told)]
    return write_tar(place / "a.tar", members)


def as_table(place: Path) -> Path:
    texts = [json.dumps(sidecar(number)) for number in range(MANY + 1)]
    table = pa.table({"url": ["http://a/b"] * len(texts), "caption": ["c"] * len(texts)})
    pq.write_table(table.append_column("json", [texts]), place / "a.parquet")
    return place / "a.parquet"


@pytest.mark.parametrize("make", [as_pairs, as_tar, as_table])
def test_a_key_has_the_type_of_all_its_values(make: Callable[[Path], Path], tmp_path: Path) -> None:
    (source,) = sources.scan([make(tmp_path)], tmp_path / ".work")
    kinds = {"score": pa.float64(), "late": pa.float64(), "new": pa.string(), "huge": pa.string()}
    assert dict(zip(source.extra.names, source.extra.types, strict=True)) == kinds
    *_, last = sources.read(source, 0, source.rows, 100)
    found = {n: columns.as_array([last.extra[n]], kind).to_pylist() for n, kind in kinds.items()}
    assert found == {"score": [5.5], "late": [0.5], "new": ["here"], "huge": [str(2**70)]}


def test_a_fraction_is_never_cut_to_a_whole_number() -> None:
    assert columns.as_array([5, 5.0, 5.5, None], pa.int64()).to_pylist() == [5, 5, None, None]
    assert not agrees(5.5, 5, pa.int64())
    assert agrees(5.5, None, pa.int64())


def scan(place: Path, folder: Path, named: ColumnsConfig | None = None) -> list[Source]:
    return sources.scan([folder], place / ".work", named)


CSV = "url,caption\nhttp://a/1,one\n"
JSONL = '{"url": "http://a/2", "caption": "two"}\n'


@pytest.mark.parametrize(
    "files", [{"a.csv": CSV, "b.jsonl": JSONL}, {"a.csv": CSV, "b.tsv": CSV.replace(",", "\t")}]
)
def test_tables_of_several_kinds_are_refused(files: dict[str, bytes | str], tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", files)
    with pytest.raises(UserError, match=r"holds both a.csv and b\.(jsonl|tsv); move one of them"):
        scan(tmp_path, folder)


def test_capital_suffixes_are_suffixes(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", {"a.csv": CSV, "B.CSV": CSV.replace("1", "3")})
    assert [row.url for row in rows_of(tmp_path, folder)] == ["http://a/3", "http://a/1"]
    pairs = fill(tmp_path / "pairs", {"a.JPG": "J", "a.TXT": "shouted", "a.JSON": '{"n": 1}'})
    (row,) = rows_of(tmp_path, pairs)
    assert (row.captions, row.extra) == (("shouted",), {"n": 1})
    tar = write_tar(tmp_path / "B.TAR", [("k.jpg", b"J"), ("k.txt", b"in a tar")])
    assert rows_of(tmp_path, tar)[0].captions == ("in a tar",)


def test_what_lies_beside_tars_is_told(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", {"more.csv": CSV, "old.tar.gz": b"\x1f\x8b"})
    write_tar(folder / "a.tar", [("k.jpg", b"J"), ("k.txt", b"c")])
    (source,) = scan(tmp_path, folder)
    assert source.rows == 1
    assert source.notes == (f"{folder}: passed over beside the tars: more.csv, old.tar.gz (2)",)


def test_folders_behind_links_are_told(tmp_path: Path) -> None:
    elsewhere = fill(tmp_path / "elsewhere", {"b.jpg": "J", "b.txt": "c"})
    folder = fill(tmp_path / "in", {"a.jpg": "J", "a.txt": "c"})
    (folder / "more").symlink_to(elsewhere)
    (source,) = scan(tmp_path, folder)
    assert source.rows == 1
    assert source.notes == (f"{folder}: folders behind links, passed over: more (1)",)


def test_an_empty_tar_is_a_broken_one(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", {"a.tar": b""})
    with pytest.raises(UserError, match=r"a\.tar: is empty$"):
        scan(tmp_path, folder)
    write_tar(folder / "b.tar", [("k.jpg", b"J"), ("k.txt", b"c")])
    assert [reason(row) for row in rows_of(tmp_path, folder)] == ["broken_source", None]


def test_an_address_in_a_column_of_paths_says_how_to_have_it_fetched(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", {"a.csv": "image,caption\nhttps://a.b/c.jpg,one\n"})
    (row,) = rows_of(tmp_path, folder)
    assert row.problem is not None
    assert row.problem.reason == "bad_path"
    assert str(row.problem.message).endswith(
        "an address, no path; name its column: columns.url=image"
    )
    (source,) = scan(tmp_path, folder, ColumnsConfig(url="image"))
    assert next(sources.read(source, 0, 1, 100)).url == "https://a.b/c.jpg"


def test_a_named_column_of_digits_is_text(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", {"a.csv": "url,alt\nhttp://a/b,1984\n"})
    (source,) = scan(tmp_path, folder, ColumnsConfig(captions=("alt",)))
    assert next(sources.read(source, 0, 1, 100)).captions == ("1984",)


def test_a_column_whose_values_can_be_no_keys_is_none(tmp_path: Path) -> None:
    numbers = pa.schema([("SAMPLE_ID", pa.float64()), ("id", pa.int64())])
    assert key_column(numbers) == "id"
    assert key_column(numbers.remove(1)) is None


def test_an_address_with_blanks_around_it_has_a_host() -> None:
    assert hosts(pa.chunked_array([["  http://www.a.b/c ", "none"]])).to_pylist() == ["a.b", None]
