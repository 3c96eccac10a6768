"""Every kind of input gives its rows in order, from any place, with problems told in the row."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from base.errors import NothingUsable, UserError
from data_pipeline import sources
from data_pipeline.config import ColumnsConfig, PrepareConfig
from data_pipeline.plan import persist
from data_pipeline.row import Row
from data_pipeline.schema.dataset import REASONS
from data_pipeline.sources.roles import find_roles
from data_pipeline.sources.source import table_rows

CAP = 1 << 20


def rows_of(tmp_path: Path, *inputs: Path) -> list[Row]:
    """All rows of some inputs."""
    found = sources.scan(list(inputs), tmp_path / ".work")
    rows = [row for s in found for row in sources.read(s, 0, s.rows, CAP)]
    assert len(rows) == sum(source.rows for source in found)
    assert all(row.problem is None or row.problem.reason in REASONS for row in rows)
    return rows


def reason(row: Row) -> str | None:
    return None if row.problem is None else row.problem.reason


def fill(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_pairs_are_sorted_by_the_bytes_of_their_paths(tmp_path: Path) -> None:
    files = {"b.png": "B", "b.txt": "b", "a/x.jpg": "X", "a/x.txt": "x", "Z.bin": "Z", "Z.txt": "z"}
    folder = fill(tmp_path / "in", files | {"a-1.jpg": "A", "a-1.txt": "a1", "lone.jpg": "none"})
    rows = rows_of(tmp_path, folder)
    assert [row.source_key for row in rows] == ["Z.bin", "a-1.jpg", "a/x.jpg", "b.png"]
    assert [row.image for row in rows] == [b"Z", b"A", b"X", b"B"]
    assert rows[0].captions == ("z",)
    (source,) = sources.scan([folder], tmp_path / ".work")
    assert source.notes[0].endswith("files without a caption, left out: 1")


def test_lines_of_a_text_are_captions_and_a_json_travels_along(tmp_path: Path) -> None:
    sidecar = json.dumps(
        {"scene": {"n": 1}, "score": 0.5, "captions": ["three"], "url": "http://u"}
    )
    folder = fill(
        tmp_path / "in",
        {"a.jpg": "A", "a.txt": "\ufeffone\r\n\n two \none\n", "a.json": sidecar},
    )
    (source,) = sources.scan([folder], tmp_path / ".work")
    assert source.extra.names == ["scene", "score"]
    (row,) = sources.read(source, 0, 1, CAP)
    assert row.captions == ("one", "two", "three")
    assert row.extra == {"scene": {"n": 1}, "score": 0.5}
    assert row.url == "http://u"


@pytest.mark.parametrize("kind", ["parquet", "csv", "tsv", "jsonl"])
def test_a_captions_table_counts_as_text_files_do(tmp_path: Path, kind: str) -> None:
    folder = fill(tmp_path / "in", {"s/a.jpg": "A", "b.jpg": "B", "b.txt": "from text"})
    records = [
        {"file": "s/a.jpg", "caption": "first, quoted", "n": 1},
        {"file": "./s/a.jpg", "caption": "second", "n": 2},
        {"file": "gone.jpg", "caption": "missing", "n": 3},
        {"file": "../b.jpg", "caption": "outside", "n": 4},
        {"file": "b.jpg", "caption": "from table", "n": 5},
    ]
    table = folder / f"captions.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(records), table)
    elif kind == "jsonl":
        table.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        comma = "," if kind == "csv" else "\t"
        lines = [[f'"{value}"' for value in record.values()] for record in records]
        table.write_text("\n".join(comma.join(line) for line in [["file", "caption", "n"], *lines]))
    rows = {row.source_key: row for row in rows_of(tmp_path, folder)}
    assert sorted(rows) == ["../b.jpg", "b.jpg", "gone.jpg", "s/a.jpg"]
    assert rows["s/a.jpg"].captions == ("first, quoted", "second")
    assert rows["s/a.jpg"].extra == {"n": 1}
    assert rows["b.jpg"].captions == ("from text", "from table")
    assert reason(rows["gone.jpg"]) == "missing_file"
    assert reason(rows["../b.jpg"]) == "bad_path"


def test_problems_of_a_pair_are_told_in_its_row(tmp_path: Path) -> None:
    files = {f"{name}.jpg": b"P" for name in ("empty", "latin", "long", "odd")}
    texts = {"empty.txt": " \n", "latin.txt": b"caf\xe9", "long.txt": "x" * (2 << 20)}
    folder = fill(tmp_path / "in", files | texts | {"odd.txt": "ok", "odd.json": "[1]"})
    fill(folder, {"big.jpg": b"0" * (CAP + 1), "big.txt": "big"})
    os.mkfifo(folder / "pipe.jpg")
    (folder / "pipe.txt").write_text("pipe")
    (folder / "sick.jpg").symlink_to("/proc/self/mem")  # opens, and cannot be read
    (folder / "sick.txt").write_text("sick disk")
    (folder / "mute.jpg").write_bytes(b"P")
    (folder / "mute.txt").symlink_to("/proc/self/mem")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "loop.txt").write_text("loop")
    (folder / "place.jpg").mkdir()
    (folder / "place.txt").write_text("a folder by a picture's name")
    rows = {row.source_key: row for row in rows_of(tmp_path, folder)}
    assert rows["empty.jpg"].captions == ()
    assert reason(rows["latin.jpg"]) == "bad_caption"
    assert reason(rows["long.jpg"]) == "bad_caption"
    assert reason(rows["odd.jpg"]) == "bad_row"
    assert reason(rows["big.jpg"]) == "too_many_bytes"
    assert reason(rows["pipe.jpg"]) == "unreadable_file"
    assert reason(rows["sick.jpg"]) == "unreadable_file"
    assert reason(rows["mute.jpg"]) == "unreadable_file"
    assert reason(rows["loop.jpg"]) in ("missing_file", "unreadable_file")
    assert "place.jpg" not in rows


def test_tables_hold_paths_or_bytes(tmp_path: Path) -> None:
    fill(tmp_path, {"pictures/a.jpg": "A"})
    table = pa.table(
        {
            "key": ["k0", "k1", "k2", "k3"],
            "image": [
                {"bytes": b"X", "path": None},
                {"bytes": None, "path": "pictures/a.jpg"},
                {"bytes": None, "path": None},
                {"bytes": None, "path": "none.jpg"},
            ],
            "TEXT": ["x", "a", "b", "c"],
            "json": ['{"scene": 1}', None, None, "{"],
            "score": [0.5, None, 1.0, 2.0],
        }
    )
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    rows = rows_of(tmp_path, tmp_path / "t.parquet")
    assert [row.source_key for row in rows] == ["k0", "k1", "k2", "k3"]
    assert [row.image for row in rows[:2]] == [b"X", b"A"]
    assert rows[0].captions == ("x",)
    assert rows[0].extra == {"key": "k0", "score": 0.5, "scene": 1}
    assert [reason(row) for row in rows] == [None, None, "no_image", "bad_row"]


def test_published_tables_are_known_by_their_columns(shared_data: Path) -> None:
    """LAION-400M, LAION-5B, its aesthetic subsets, LAION-COCO, COYO-700M, DataComp."""
    known = json.loads((shared_data / "schemas" / "schemas.json").read_text())
    captions = {"laion_coco": ("top_caption", "all_captions")}
    for name, table in known.items():
        if name == "img2dataset_output":  # appended to the input's columns
            continue
        kinds = [(column, kind.split()[0].split("|")[0]) for column, kind in table["columns"]]
        schema = pa.schema([(column, _kind(text)) for column, text in kinds])
        roles = find_roles(schema, name)
        assert roles.url in ("URL", "url"), name
        assert roles.captions in (("TEXT",), ("text",), captions.get(name)), name
        assert roles.image is None, name
        assert roles.path is None, name
        assert ("sha256" in roles.hashes) == ("sha256" in schema.names)


def _kind(text: str) -> pa.DataType:
    if text.startswith("list<"):
        return pa.list_(pa.string() if "string" in text else pa.float64())
    return pa.string() if text.startswith("string") else pa.int64()


def test_columns_that_are_named(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": "A"})
    columns = {"where": ["a.png"], "alt": ["one"], "title": ["two"], "nr": [7], "caption": ["not"]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    named = ColumnsConfig(path="where", captions=("alt", "title"), key="nr")
    (source,) = sources.scan([tmp_path / "t.parquet"], tmp_path / ".work", named)
    (row,) = sources.read(source, 0, 1, CAP)
    assert (row.captions, row.image) == (("one", "two"), b"A")
    assert row.extra == {"caption": "not", "nr": 7}
    for wrong, message in (
        ({"url": "link"}, r"columns\.url: got 'link', .* has where, alt, title, nr, caption"),
        ({"captions": ("nr",)}, r"columns\.captions: 'nr' of .* is int64"),
    ):
        with pytest.raises(UserError, match=message):
            sources.scan(
                [tmp_path / "t.parquet"], tmp_path / ".work", named.model_copy(update=wrong)
            )


def test_an_address_that_is_named_goes_before_what_names_tell(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": "A"})
    columns = {"jpg": [b"B"], "file": ["a.png"], "url": ["http://b/"], "link": ["http://c/"]}
    pq.write_table(pa.table({**columns, "caption": ["x"]}), tmp_path / "t.parquet")
    found = {}
    for named in (
        ColumnsConfig(),
        ColumnsConfig(url="link"),
        ColumnsConfig(url="link", path="file"),
    ):
        (source,) = sources.scan([tmp_path / "t.parquet"], tmp_path / ".work", named)
        (row,) = sources.read(source, 0, 1, CAP)
        found[named.url, named.path] = row.url, row.image
    assert found == {
        (None, None): ("http://b/", b"B"),
        ("link", None): ("http://c/", None),  # to be fetched
        ("link", "file"): ("http://c/", b"B"),
    }


def test_a_key_that_is_named_goes_before_the_path(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": "A"})
    columns = {"file": ["a.png"], "nr": [7], "key": ["k"], "caption": ["x"]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    keys = []
    for named in (ColumnsConfig(), ColumnsConfig(key="nr")):
        (source,) = sources.scan([tmp_path / "t.parquet"], tmp_path / ".work", named)
        (row,) = sources.read(source, 0, 1, CAP)
        keys.append(row.source_key)
    assert keys == ["a.png", "7"]


def test_named_columns_of_a_folder_s_captions_table(tmp_path: Path) -> None:
    lines = "where;what;alt;from\na.jpg;no;a cat;http://host/a\n".replace(";", ",")
    folder = fill(tmp_path / "in", {"a.jpg": "x", "captions.csv": lines})
    named = ColumnsConfig(path="where", captions=("alt",), url="from")
    (found,) = sources.scan([folder], tmp_path / ".work", named)
    (row,) = sources.read(found, 0, 1, CAP)
    assert (row.image, row.captions, row.url) == (b"x", ("a cat",), "http://host/a")
    assert row.extra == {"what": "no"}
    with pytest.raises(
        UserError, match=r"columns\.captions: got 'TEXT', .*captions\.csv has where"
    ):
        sources.scan([folder], tmp_path / ".work", ColumnsConfig(captions=("TEXT",)))
    fill(folder, {"captions.csv": lines.replace("where", "file").replace("from", "url")})
    (found,) = sources.scan(
        [folder], tmp_path / ".work", ColumnsConfig(captions=("alt",), url="url")
    )
    (row,) = sources.read(found, 0, 1, CAP)
    assert (row.image, row.url) == (b"x", "http://host/a")


@pytest.mark.parametrize(
    "named", [None, ColumnsConfig(captions=("text",)), ColumnsConfig(key="__bad__")]
)
def test_what_is_told_of_a_table_s_columns_are_its_own(
    named: ColumnsConfig | None, tmp_path: Path
) -> None:
    table = fill(tmp_path, {"a.csv": "file,n\nx,1\n"}) / "a.csv"
    with pytest.raises(UserError, match=r"has file, n$"):
        sources.scan([table], tmp_path / ".work", named)


def test_text_that_is_not_utf8_spoils_its_row_alone(tmp_path: Path) -> None:
    captions = pa.array([b"fine", b"caf\xe9"]).cast(pa.string(), safe=False)
    table = pa.table({"jpg": [b"A", b"B"], "caption": captions})
    pq.write_table(table, tmp_path / "t.parquet")
    assert [reason(row) for row in rows_of(tmp_path, tmp_path / "t.parquet")] == [
        None,
        "bad_caption",
    ]


def test_tars_group_adjacent_members_at_the_first_dot(tmp_path: Path) -> None:
    members = [
        ("d/a.jpg", b"A"),
        ("d/a.txt", b"line one\nline two\n"),
        ("d/a.json", b'{"key": "x", "caption": "line one", "width": 3}'),
        ("b.seg.png", b"S"),
        ("b.png", b"B"),
        ("b.txt", b"b"),
        ("c.txt", b"no picture"),
        ("../up.jpg", b"U"),
        ("../up.txt", b"up"),
    ]
    path = write_tar(tmp_path / "a.tar", members)
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    rows = rows_of(tmp_path, path)
    assert [row.source_key for row in rows] == ["d/a", "b", "c", "../up"]
    assert rows[0].captions == ("line one\nline two", "line one")
    assert rows[0].extra == {"key": "x", "width": 3}
    assert rows[1].image == b"B"
    assert [reason(row) for row in rows] == [None, None, "no_image", None]


@given(st.floats(0.05, 1.0))
@settings(max_examples=25)
def test_a_tar_cut_anywhere_keeps_what_is_whole(
    tmp_path_factory: pytest.TempPathFactory, share: float
) -> None:
    tmp_path = tmp_path_factory.mktemp("cut")
    members = [
        (f"{i}.{suffix}", bytes([65 + i]) * 700) for i in range(6) for suffix in ("jpg", "txt")
    ]
    path = write_tar(tmp_path / "a.tar", members)
    data = path.read_bytes()[: 12 * 1536]
    path.write_bytes(data[: int(len(data) * share)])
    rows = rows_of(tmp_path, path)
    good = [row for row in rows if row.problem is None and row.captions]
    assert [row.image for row in good] == [bytes([65 + i]) * 700 for i in range(len(good))]
    # A picture and its text take 3,072 bytes; the last text's data ends 324 bytes before its block.
    assert len(good) == (int(len(data) * share) + 324) // 3072
    assert len(rows) - len(good) <= 2


def test_a_declared_giant_is_not_read(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("a.jpg", b"A"), ("a.txt", b"a")])
    giant = tarfile.TarInfo("b.jpg")
    giant.size = 10 << 30
    raw = path.read_bytes()[:2048] + giant.tobuf(tarfile.GNU_FORMAT) + b"tiny"
    path.write_bytes(raw)
    assert [reason(row) for row in rows_of(tmp_path, path)] == [None, "broken_source"]


def test_a_parquet_damaged_inside_keeps_its_whole_row_groups(tmp_path: Path) -> None:
    """Found by `make soak`: the footer is well, a page is not."""
    path = tmp_path / "a.parquet"
    captions = [f"a caption of row {i}, {'long ' * 40}" for i in range(40)]
    table = pa.table({"url": [f"http://host/{i}" for i in range(40)], "caption": captions})
    pq.write_table(table, path, row_group_size=10, compression="zstd", use_dictionary=False)
    column = pq.read_metadata(path).row_group(2).column(1)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset : column.data_page_offset + 20] = b"\xff" * 20
    path.write_bytes(data)
    found = [(row.source_key, reason(row)) for row in rows_of(tmp_path, path)]
    damaged = range(20, 30)
    assert found == [(str(i), "broken_source" if i in damaged else None) for i in range(40)]
    (source,) = sources.scan([path], tmp_path / ".work")
    part = [reason(row) for row in sources.read(source, 25, 10, CAP)]
    assert part == ["broken_source"] * 5 + [None] * 5


def test_a_parquet_with_names_that_are_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"caption": ["a"], "urlurl": ["b"]}), path)
    path.write_bytes(path.read_bytes().replace(b"urlurl", b"url\xff\xfel"))
    with pytest.raises(UserError, match="cannot be read"):
        sources.scan([path], tmp_path / ".work")


@pytest.mark.parametrize("container", ["b.parquet", "b.tar"])
@pytest.mark.parametrize("pair", ["a", "deep/er/a"])
def test_pairs_beside_tars_or_tables_are_not_passed_over(
    tmp_path: Path, container: str, pair: str
) -> None:
    folder = fill(tmp_path / "in", {f"{pair}.jpg": "P", f"{pair}.txt": "a"})
    (folder / container).write_bytes(b"")
    with pytest.raises(UserError, match=rf"holds both {container} and pairs \({pair}\.txt\)"):
        rows_of(tmp_path, folder)


def test_folders_of_tars_or_tables_are_taken_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("00001", "00000"):
        write_tar(folder / f"{name}.tar", [(f"{name}.jpg", b"P"), (f"{name}.txt", b"t")])
    assert [row.source_key for row in rows_of(tmp_path, folder)] == ["00000", "00001"]
    both = rows_of(tmp_path, folder / "00001.tar", folder)
    assert [row.source_key for row in both] == ["00001", "00000", "00001"]


@given(st.integers(0, 30), st.integers(1, 30), st.integers(1, 7))
@settings(max_examples=25)
def test_table_rows_reads_any_range(
    tmp_path_factory: pytest.TempPathFactory, first: int, count: int, group: int
) -> None:
    path = tmp_path_factory.mktemp("rows") / "t.parquet"
    pq.write_table(pa.table({"n": range(61)}), path, row_group_size=group)
    batches = table_rows(str(path), first, count, batch=4)
    found = [value for batch in batches for value in batch.column("n").to_pylist()]
    assert found == list(range(first, first + count))


def test_reading_in_slices_equals_reading_at_once(
    tmp_path: Path, pairs_folder: Callable[[Path, int], Path]
) -> None:
    (source,) = sources.scan([pairs_folder(tmp_path / "in", 23)], tmp_path / ".work")
    whole = list(sources.read(source, 0, 23, CAP))
    sliced = [row for i in range(0, 23, 5) for row in sources.read(source, i, min(5, 23 - i), CAP)]
    assert sliced == whole


def test_fingerprints_follow_content_not_place(
    tmp_path: Path, pairs_folder: Callable[[Path, int], Path]
) -> None:
    def fingerprint(folder: Path) -> str:
        return sources.scan([folder], tmp_path / ".work")[0].fingerprint

    first, second = pairs_folder(tmp_path / "one", 4), pairs_folder(tmp_path / "two", 4)
    assert fingerprint(first) == fingerprint(second)
    (second / "00002.jpg").write_bytes(b"longer or shorter")
    assert fingerprint(first) != fingerprint(second)


PAIR: dict[str, bytes | str] = {"a.jpg": "picture", "a.txt": "red", "a.json": '{"n": 1}'}
TABLE: dict[str, bytes | str] = {"a.jpg": "x", "captions.csv": "file,text\na.jpg,red\n"}


def _as_tar(folder: Path, files: dict[str, bytes | str]) -> Path:
    made = [(n, d.encode() if isinstance(d, str) else d) for n, d in files.items()]
    folder.mkdir()
    return write_tar(folder / "some.tar", made)


@pytest.mark.parametrize(
    ("make", "before", "name", "after"),
    [
        (fill, PAIR, "a.txt", "big"),
        (fill, PAIR, "a.json", '{"n": 2}'),
        (fill, TABLE, "captions.csv", "file,text\na.jpg,big\n"),
        (_as_tar, PAIR, "a.txt", "big"),
        (_as_tar, PAIR, "a.json", '{"n": 2}'),
    ],
)
def test_a_run_goes_on_with_a_copy_but_with_no_other_caption_of_that_length(
    tmp_path: Path,
    make: Callable[[Path, dict[str, bytes | str]], Path],
    before: dict[str, bytes | str],
    name: str,
    after: str,
) -> None:
    def begin(given: Path) -> None:
        found = sources.scan([given], tmp_path / ".work")
        persist(tmp_path / "out", found, PrepareConfig())

    assert len(after) == len(before[name])
    begin(make(tmp_path / "in", before))
    begin(make(tmp_path / "copy", before))
    other = make(tmp_path / "other", {**before, name: after})
    with pytest.raises(UserError, match=rf"out: begun with .*, now .*{other.name} \("):
        begin(other)


def test_what_a_text_is_instead_of_one_is_told_apart_without_waiting(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", {"a.jpg": "x"})
    os.mkfifo(folder / "a.txt")  # to open it would wait for whoever writes
    (found,) = sources.scan([folder], tmp_path / ".work")
    assert [reason(row) for row in sources.read(found, 0, 1, CAP)] == ["unreadable_file"]
    (folder / "a.txt").unlink()
    (folder / "a.txt").write_text("")
    assert sources.scan([folder], tmp_path / ".work")[0].fingerprint != found.fingerprint


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: p / "absent", UserError, "no such file"),
        (lambda p: fill(p / "in", {"readme.md": "x"}), NothingUsable, "no file has a caption"),
        (lambda p: fill(p, {"a.tar": "not a tar at all"}) / "a.tar", UserError, "not a tar"),
        (lambda p: fill(p, {"a.tar": b"\x1f\x8b\x08"}) / "a.tar", UserError, "gunzip"),
        (lambda p: fill(p, {"a.parquet": "x"}) / "a.parquet", UserError, "cannot be read"),
        (lambda p: fill(p, {"a.csv": ""}) / "a.csv", UserError, "is empty"),
        (lambda p: fill(p, {"a.csv": "file,n\nx,1\n"}) / "a.csv", UserError, "no caption column"),
        (
            lambda p: fill(p, {"a.csv": "n,text\nu,t\n"}) / "a.csv",
            UserError,
            "no column with an address, a path or bytes",
        ),
        (lambda p: fill(p, {"a.xyz": "?"}) / "a.xyz", UserError, "expected a folder"),
    ],
)
def test_inputs_of_no_use_are_one_clear_line(
    tmp_path: Path,
    make: Callable[[Path], Path],
    error: type[UserError],
    message: str,
) -> None:
    with pytest.raises(error, match=message) as caught:
        sources.scan([make(tmp_path)], tmp_path / ".work")
    assert "\n" not in str(caught.value)


def test_an_empty_folder_has_exit_code_3(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(NothingUsable, match="empty") as caught:
        sources.scan([tmp_path / "in"], tmp_path / ".work")
    assert caught.value.exit_code == 3
