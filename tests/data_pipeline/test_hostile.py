"""Tables that are not what they should be: a reason in the row, or one clear line; never more."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from base.errors import NothingUsable, UserError
from data_pipeline import sources
from data_pipeline.config import PrepareConfig
from data_pipeline.pipeline import prepare
from data_pipeline.row import Row
from data_pipeline.status import status
from data_pipeline.verify import verify

LATIN = b"caf\xe9"


def rows_of(folder: Path, table: pa.Table | bytes, name: str = "t.parquet") -> list[Row]:
    if isinstance(table, bytes):
        (folder / name).write_bytes(table)
    else:
        pq.write_table(table, folder / name)
    found = sources.scan([folder], folder / ".work")
    return [row for s in found for row in sources.read(s, 0, s.rows, 1 << 20)]


def not_utf8(*values: bytes | None, kind: pa.DataType | None = None) -> pa.Array:
    array = pa.array(values, pa.binary()).cast(pa.string(), safe=False)
    return array if kind is None else array.cast(kind, safe=False)


def twice() -> pa.Table:
    return pa.Table.from_arrays([pa.array(["u"])] * 3, names=["url", "caption", "url"])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"url": ["u"], "caption": [5]}), "column 'caption' is int64, expected text"),
        (pa.table({"url": ["u"], "caption": [{"a": "c"}]}), "column 'caption' is struct.*, exp"),
        (pa.table({"url": [5], "caption": ["c"]}), "column 'url' is int64, expected text"),
        (pa.table({"jpg": ["text"], "caption": ["c"]}), "column 'jpg' is string, expected bytes"),
        (pa.table({"url": pa.nulls(2), "caption": ["a", "b"]}), "column 'url' is null, exp"),
        (pa.table({"caption": ["c"]}), "no column with an address"),
        (pa.table({"url": ["u"]}), "no caption column"),
        (pa.table({}), "no caption column|no rows"),
        (twice(), "two columns are called 'url'"),
    ],
)
def test_tables_of_other_columns_are_one_clear_line(
    table: pa.Table, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        rows_of(tmp_path, table)
    assert "\n" not in str(caught.value)


def test_a_table_without_rows_has_exit_code_3(tmp_path: Path) -> None:
    schema = pa.schema([("url", pa.string()), ("caption", pa.string())])
    with pytest.raises(NothingUsable, match="no rows"):
        rows_of(tmp_path, schema.empty_table())


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_table_cut_short_is_one_clear_line(share: float, tmp_path: Path) -> None:
    pq.write_table(pa.table({"url": ["u"] * 99, "caption": ["c"] * 99}), tmp_path / "t.parquet")
    data = (tmp_path / "t.parquet").read_bytes()
    with pytest.raises(UserError, match=r"t\.parquet: cannot be read") as caught:
        rows_of(tmp_path, data[: int(len(data) * share)])
    assert "\n" not in str(caught.value)


TEXTS: list[Callable[[], pa.DataType]] = [
    pa.string,
    pa.large_string,
    pa.string_view,
    lambda: pa.dictionary(pa.int32(), pa.string()),
]


@pytest.mark.parametrize("kind", TEXTS)
def test_text_of_every_arrow_type_is_text(kind: Callable[[], pa.DataType], tmp_path: Path) -> None:
    text = pa.array(["a", None, "b"]).cast(kind())
    table = pa.table({"url": text, "caption": text, "note": text})
    rows = rows_of(tmp_path, table)
    assert [row.url for row in rows] == ["a", None, "b"]
    assert [row.captions for row in rows] == [("a",), (), ("b",)]
    assert rows[1].problem is not None
    assert rows[1].problem.reason == "no_image"
    assert rows[2].extra["note"] == "b"


def test_values_that_python_cannot_hold_spoil_nothing(tmp_path: Path) -> None:
    table = pa.table(
        {
            "url": not_utf8(b"u", LATIN, b"w"),
            "caption": not_utf8(b"c", b"d", LATIN),
            "note": not_utf8(LATIN, b"e", None),
            "tags": pa.array([[b"x", LATIN], None, []], pa.list_(pa.binary())).cast(
                pa.list_(pa.string()), safe=False
            ),
            "when": pa.array([0, 1 << 62, None], pa.int64()).cast(pa.timestamp("ms")),
            "inner": pa.array([{"n": 1 << 61}, None, {"n": 0}]).cast(
                pa.struct([("n", pa.timestamp("ms"))])
            ),
        }
    )
    rows = rows_of(tmp_path, table)
    assert [row.url for row in rows] == ["u", "caf\ufffd", "w"]
    assert [row.problem.reason if row.problem else None for row in rows] == [
        None, None, "bad_caption",
    ]  # fmt: skip
    assert rows[0].extra["note"] == LATIN
    assert rows[0].extra["tags"] == ["x", LATIN]
    assert rows[1].extra["when"] == str(1 << 62)


def test_ten_megabytes_of_caption_are_a_bad_caption(tmp_path: Path) -> None:
    captions = ["x" * (10 << 20), "y", "é" * (1 << 19), "é" * (1 << 20)]
    table = pa.table({"url": ["u"] * 4, "caption": captions})
    rows = rows_of(tmp_path, table)
    assert [row.problem.reason if row.problem else None for row in rows] == [
        "bad_caption", None, None, "bad_caption",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_bad_lines_of_a_folder_s_captions_are_rows_too(kind: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"A")
    lines = {
        "csv": b'file,caption\na.jpg,one\na.jpg\n"open,x\na.jpg,two\n',
        "jsonl": b'{"file": "a.jpg", "caption": "one"}\n{\n7\n{"file": "a.jpg", "caption": "two"}',
    }
    rows = rows_of(tmp_path, lines[kind], f"captions.{kind}")
    found = {row.source_key: row for row in rows}
    assert sorted(found) == ["a.jpg", f"captions.{kind}: row 1", f"captions.{kind}: row 2"]
    assert found["a.jpg"].captions == ("one", "two")
    problems = [row.problem for row in rows if row.problem]
    assert [problem.reason for problem in problems] == ["bad_row", "bad_row"]


def test_names_of_a_captions_table_may_be_any_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"A")
    table = pa.table({"file": not_utf8(b"a.jpg", LATIN), "caption": not_utf8(LATIN, b"c")})
    rows = {row.source_key: row for row in rows_of(tmp_path, table, "captions.parquet")}
    assert sorted(rows) == ["a.jpg", "caf\ufffd"]
    assert [row.problem.reason for row in rows.values() if row.problem] == [
        "bad_caption", "missing_file",
    ]  # fmt: skip


def test_odd_values_reach_the_metadata_and_the_job_goes_on(
    tmp_path: Path, picture_bytes: Callable[..., bytes], ray_cluster: None
) -> None:
    columns: dict[str, Any] = {
        "jpg": [picture_bytes(0), None, b"", picture_bytes(1)],
        "caption": not_utf8(b"fine", b"b", b"c", LATIN),
        "note": not_utf8(LATIN, None, b"x", b"y"),
        "when": pa.array([1 << 62] * 4, pa.int64()).cast(pa.timestamp("ms")),
        "blob": [b"\xff\x00"] * 4,
        "json": ['{"width": "wide", "nested": {"a": [1]}}', "{", None, "[]"],
        "KEY": ["../../etc/passwd", "k", "l", "m"],
    }
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "in" / "t.parquet")
    info = prepare([tmp_path / "in"], tmp_path / "out", "none", PrepareConfig(image_size=32))
    assert (info.kept, info.rejected) == (1, 3)
    assert verify(tmp_path / "out").problems == ()
    assert status(tmp_path / "out").reasons == {"bad_row": 2, "no_image": 1}
    (row,) = pq.read_table(tmp_path / "out" / "metadata").to_pylist()
    assert row["source_key"] == row["input_KEY"] == "../../etc/passwd"
    assert row["input_width"] == "wide"
