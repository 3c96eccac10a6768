"""Tables of addresses, through the whole of `prepare`, against a real server on loopback."""

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from web import Server

from base.errors import NothingUsable, UserError
from data_pipeline.config import ColumnsConfig, PrepareConfig
from data_pipeline.fetch import FetchConfig
from data_pipeline.pipeline import prepare
from data_pipeline.retry import _rows, retry
from data_pipeline.row import Row
from data_pipeline.schema.dataset import REASONS, RETRYABLE
from data_pipeline.sources import Source
from data_pipeline.status import status
from data_pipeline.verify import verify

COUNT = 60


def config(**settings: Any) -> PrepareConfig:
    fetch = FetchConfig(allow_private=True, backoff_seconds=0.01, attempts=2, **settings)
    return PrepareConfig(image_size=32, samples_per_shard=25, fetch=fetch)


@pytest.fixture
def laion(
    server: Server, tmp_path: Path, picture_bytes: Callable[..., bytes]
) -> tuple[Path, dict[str, bytes]]:
    """A table with LAION's columns, and what is behind its addresses."""
    server.files = {f"{i}.jpg": picture_bytes(i) for i in range(COUNT)}
    columns = {
        "SAMPLE_ID": list(range(COUNT)),
        "URL": [server.url(name) for name in server.files],
        "TEXT": [f"picture number {i}" for i in range(COUNT)],
        "WIDTH": [96] * COUNT,
        "NSFW": ["UNLIKELY"] * COUNT,
        "similarity": [i / 100 for i in range(COUNT)],
    }
    path = tmp_path / "laion.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=16)
    return path, server.files


def metadata(dataset: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(p) for p in sorted(dataset.glob("metadata/*.parquet"))])


def rejected(dataset: Path) -> list[dict[str, Any]]:
    tables = [pq.read_table(path) for path in sorted(dataset.glob("rejected/*.parquet"))]
    rows: list[dict[str, Any]] = pa.concat_tables(tables).to_pylist()
    return rows


def test_a_table_of_laion(
    laion: tuple[Path, dict[str, bytes]], server: Server, tmp_path: Path, ray_cluster: None
) -> None:
    path, files = laion
    info = prepare([path], tmp_path / "out", "none", config())
    assert (info.kept, info.rejected) == (COUNT, 0)
    assert verify(tmp_path / "out").whole
    table = metadata(tmp_path / "out")
    assert table["url"].to_pylist() == [server.url(name) for name in files]
    assert table["sha256"].to_pylist() == [hashlib.sha256(d).hexdigest() for d in files.values()]
    assert table["caption"].to_pylist() == [f"picture number {i}" for i in range(COUNT)]
    assert table["NSFW"].to_pylist() == ["UNLIKELY"] * COUNT
    assert table["input_WIDTH"].to_pylist() == [96] * COUNT
    assert table["input_similarity"].to_pylist() == [i / 100 for i in range(COUNT)]
    assert {name: server.seen[name] for name in files} == dict.fromkeys(files, 1)


def test_equal_answers_give_equal_bytes_in_whatever_order_they_come(
    laion: tuple[Path, dict[str, bytes]],
    server: Server,
    tmp_path: Path,
    ray_cluster: None,
    tree: Callable[[Path], dict[str, str]],
) -> None:
    path, files = laion
    del files["7.jpg"], files["31.jpg"]
    files["12.jpg"] = b"<html>gone</html>"
    prepare([path], tmp_path / "quick", "none", config())
    delays = random.Random(0)
    server.pause = lambda name: delays.uniform(0, 0.2)
    prepare([path], tmp_path / "slow", "none", config())
    assert tree(tmp_path / "slow") == tree(tmp_path / "quick")


def test_every_fault_has_its_reason_and_stops_nothing(
    laion: tuple[Path, dict[str, bytes]], server: Server, tmp_path: Path, ray_cluster: None
) -> None:
    path, _ = laion
    faults = {
        server.url("status/404"): "http_error",
        server.url("status/503"): "http_passing",
        server.url("status/204"): "http_error",
        server.url("hops/9"): "too_many_redirects",
        server.url("to?place=file:///etc/passwd"): "bad_url",
        server.url("tag?tag=noai"): "opted_out",
        server.url("short"): "connection",
        server.url("silent"): "timeout",
        server.url("endless"): "too_many_bytes",
        server.url("picture"): "not_an_image",
        "http://127.0.0.1:9/x.jpg": "connection",
        "http://nowhere.invalid/x.jpg": "dns",
        "ftp://127.0.0.1/x.jpg": "bad_url",
        "": "no_image",
        None: "no_image",
    }
    good = server.url("0.jpg")
    urls = [url for fault in faults for url in (fault, good)]
    table = pa.table({"url": urls, "caption": [f"number {i}" for i in range(len(urls))]})
    pq.write_table(table, path)
    limits = {"silence_seconds": 3.0, "max_bytes": 1 << 20}
    info = prepare([path], tmp_path / "out", "none", config(**limits))
    assert (info.kept, info.rejected) == (len(faults), len(faults))
    found = rejected(tmp_path / "out")
    assert [row["row"] for row in found] == list(range(0, 2 * len(faults), 2))
    assert [row["reason"] for row in found] == list(faults.values())
    assert set(RETRYABLE) < set(REASONS)
    assert verify(tmp_path / "out").whole


@pytest.mark.parametrize("name", ["md5", "sha256"])
def test_bytes_that_are_not_the_expected_ones(
    name: str,
    laion: tuple[Path, dict[str, bytes]],
    server: Server,
    tmp_path: Path,
    ray_cluster: None,
) -> None:
    path, files = laion
    digests = [hashlib.new(name, data).hexdigest() for data in files.values()]
    digests[3], digests[5] = digests[4], "not a digest"  # what is none is not looked at
    columns = {"url": [server.url(f) for f in files], "caption": ["x"] * COUNT, name: digests}
    pq.write_table(pa.table(columns), path)
    prepare([path], tmp_path / "out", "none", config())
    assert [(row["row"], row["reason"]) for row in rejected(tmp_path / "out")] == [
        (3, "wrong_hash")
    ]


def test_opt_out_by_hash(
    laion: tuple[Path, dict[str, bytes]],
    tmp_path: Path,
    ray_cluster: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The list's path is relative, and workers run elsewhere; one that grew is another list."""
    monkeypatch.chdir(tmp_path)
    path, files = laion
    unwanted = [hashlib.sha256(files["2.jpg"]).hexdigest().upper(), hashlib.md5(files["9.jpg"])]
    (tmp_path / "list.txt").write_text(
        f"# asked by mail\n{unwanted[0]}\n{unwanted[1].hexdigest()}\n"
    )
    listed = config(opt_out_hashes=Path("list.txt"))
    prepare([path], tmp_path / "out", "none", listed)
    found = [(row["row"], row["reason"]) for row in rejected(tmp_path / "out")]
    assert found == [(2, "opted_out"), (9, "opted_out")]
    Path("list.txt").write_text(f"{unwanted[0]}\n{'0' * 64}\n")
    with pytest.raises(UserError, match=r"fetch\.opt_out_hashes: the list changed since"):
        prepare([path], tmp_path / "out", "none", listed)
    prepare([path], tmp_path / "other", "none", listed)
    found = [(row["row"], row["reason"]) for row in rejected(tmp_path / "other")]
    assert found == [(2, "opted_out")]
    Path("list.txt").unlink()
    with pytest.raises(UserError, match=r"list\.txt: No such file"):
        prepare([path], tmp_path / "third", "none", listed)
    assert not (tmp_path / "third").exists()


def test_rows_that_would_be_rejected_anyway_are_not_fetched(
    laion: tuple[Path, dict[str, bytes]], server: Server, tmp_path: Path, ray_cluster: None
) -> None:
    path, files = laion
    captions = ["" if i % 2 else "fine" for i in range(COUNT)]
    pq.write_table(pa.table({"url": [server.url(f) for f in files], "text": captions}), path)
    prepare([path], tmp_path / "out", "none", config())
    assert Counter(row["reason"] for row in rejected(tmp_path / "out")) == {
        "no_caption": COUNT // 2
    }
    assert sum(server.seen[name] for name in files) == COUNT // 2


def test_another_pass_over_what_may_pass(
    laion: tuple[Path, dict[str, bytes]], server: Server, tmp_path: Path, ray_cluster: None
) -> None:
    """Only that: with the columns of the first input, and the row that it was there."""
    path, files = laion
    wanted = [3, 26, 27, 59]
    table = pq.read_table(path).to_pydict()
    for i in wanted:
        table["URL"][i] = server.url(f"again/503/{i}")
    table["URL"][7] = server.url("status/404")
    pq.write_table(pa.table(table), path, row_group_size=16)
    first = prepare([path], tmp_path / "first", "none", config())
    assert (first.kept, first.rejected) == (COUNT - 5, 5)
    for i in wanted:
        server.files[f"again/503/{i}"] = files[f"{i}.jpg"]
    second = retry(tmp_path / "first", tmp_path / "second")
    assert (second.kept, second.rejected) == (4, 0)
    assert verify(tmp_path / "second").whole
    found = metadata(tmp_path / "second")
    assert found["source_row"].to_pylist() == wanted
    assert found["SAMPLE_ID"].to_pylist() == wanted
    assert found["caption"].to_pylist() == [f"picture number {i}" for i in wanted]
    before = metadata(tmp_path / "first")
    assert set(before.column_names) | {"source_row"} == set(found.column_names)
    assert server.seen["status/404"] == 1
    with pytest.raises(NothingUsable, match="no row was rejected for a reason that may pass"):
        retry(tmp_path / "second", tmp_path / "third")


def test_passes_over_passes_lead_to_the_first_input(
    laion: tuple[Path, dict[str, bytes]], server: Server, tmp_path: Path, ray_cluster: None
) -> None:
    """Also where columns of it have names that would be taken for others."""
    path, files = laion
    table = pq.read_table(path).to_pydict()
    table["path"] = [f"elsewhere/{i}.jpg" for i in range(COUNT)]
    table["caption"] = table["path"]
    for i in (3, 26, 27, 59):
        table["URL"][i] = server.url(f"again/503/{i}")
    pq.write_table(pa.table(table), path, row_group_size=16)
    named = ColumnsConfig(url="URL", captions=("TEXT",), key="SAMPLE_ID")
    settings = config().model_copy(update={"columns": named})
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    prepare([path], first, "none", settings)
    server.files["again/503/26"] = files["26.jpg"]
    for i in (3, 27, 59):
        server.seen[f"again/503/{i}"] = 0  # begins to fail once more
    assert retry(first, second).kept == 1
    server.files |= {f"again/503/{i}": files[f"{i}.jpg"] for i in (3, 27, 59)}
    assert retry(second, third).kept == 3
    found = metadata(third)
    assert found["source_row"].to_pylist() == [3, 27, 59]
    assert found["source_key"].to_pylist() == ["3", "27", "59"]
    assert found["input_caption"].to_pylist() == [f"elsewhere/{i}.jpg" for i in (3, 27, 59)]
    assert found["row"].to_pylist() == [0, 1, 2]
    assert found.schema.equals(metadata(second).schema)
    assert verify(third).whole
    retry(second, third)  # goes on with its own plan, and there is nothing left to do
    lost = first / "rejected" / "rejected_00001.parquet"
    pq.write_table(pq.read_table(lost).slice(1), lost)
    with pytest.raises(
        UserError, match=r"first \(retry\): changed since .*second was begun \(4 rows"
    ):
        retry(second, tmp_path / "fourth")
    first.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"first: no such file or folder, but .*second was made of"):
        retry(second, tmp_path / "fourth")
    second.rename(first)
    with pytest.raises(UserError, match=r"first: another pass over .*first, which is no earlier"):
        retry(first, tmp_path / "fourth")


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=6), st.sets(st.integers(0, 239)), st.data()
)
def test_the_rows_of_another_pass_are_the_wanted_ones(
    sizes: list[int], some: set[int], data: st.DataObject
) -> None:
    wanted = sorted(n for n in some if n < sum(sizes))
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    found = [
        Source("table", str(start), "", size, "", "", pa.schema([]))
        for start, size in zip(starts, sizes, strict=True)
    ]
    together = data.draw(st.integers(1, 50))

    def read(source: Source, first: int, count: int, max_bytes: int) -> Iterator[Row]:
        assert 0 < count <= together
        assert first + count <= source.rows
        yield from (Row(f"{int(source.name) + first + i}") for i in range(count))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data_pipeline.retry._READ_ROWS", together)
        patch.setattr("data_pipeline.sources.read", read)
        rows = list(_rows(found, np.array(wanted, np.int64), 1))
    assert [position for position, _ in rows] == wanted
    assert [row.source_key for _, row in rows] == [str(position) for position in wanted]


def test_another_pass_over_other_inputs_is_refused(
    laion: tuple[Path, dict[str, bytes]], server: Server, tmp_path: Path, ray_cluster: None
) -> None:
    path, files = laion
    server.files = {}
    table = pq.read_table(path).to_pydict()
    table["URL"][:2] = [server.url("status/503")] * 2
    pq.write_table(pa.table(table), path)
    server.files = files
    prepare([path], tmp_path / "first", "none", config())
    table["URL"][5] = "http://127.0.0.1/other"
    pq.write_table(pa.table(table), path)
    with pytest.raises(UserError, match=r"laion\.parquet: changed since"):
        retry(tmp_path / "first", tmp_path / "second")
    path.unlink()
    with pytest.raises(UserError, match="no such file"):
        retry(tmp_path / "first", tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_another_pass_takes_the_opt_out_lists_as_they_are_by_then(
    laion: tuple[Path, dict[str, bytes]], server: Server, tmp_path: Path, ray_cluster: None
) -> None:
    path, files = laion
    table = pq.read_table(path).slice(0, 3).to_pydict()
    table["URL"] = [server.url(name) for name in ("0.jpg", "again/503/a", "again/503/b")]
    pq.write_table(pa.table(table), path)
    unwanted = tmp_path / "list"
    unwanted.write_text("")
    assert prepare([path], tmp_path / "first", "none", config(opt_out_hashes=unwanted)).kept == 1
    server.files |= {"again/503/a": files["1.jpg"], "again/503/b": files["2.jpg"]}
    unwanted.write_text(hashlib.sha256(files["2.jpg"]).hexdigest())
    second = retry(tmp_path / "first", tmp_path / "second")
    assert (second.kept, second.rejected) == (1, 1)
    assert [row["reason"] for row in rejected(tmp_path / "second")] == ["opted_out"]


def test_a_dataset_in_which_nothing_arrived_is_asked_for_again(
    laion: tuple[Path, dict[str, bytes]], server: Server, tmp_path: Path, ray_cluster: None
) -> None:
    """By the same command, and of its shards only those whose fault may pass."""
    path, files = laion
    table = pq.read_table(path).slice(0, 3).to_pydict()
    table["URL"] = [server.url(f"status/{name}") for name in ("503/a", "404", "503/b")]
    pq.write_table(pa.table(table), path)
    settings = config().model_copy(update={"samples_per_shard": 1})
    out = tmp_path / "out"
    for asked in (2, 4):  # at two attempts each time
        with pytest.raises(
            NothingUsable, match=r"\(http_passing 2, .*of 2 the fault may pass: the"
        ):
            prepare([path], out, "none", settings)
        assert server.seen["status/503/a"] == asked
    assert server.seen["status/404"] == 1
    assert status(out).reasons == {"http_passing": 2, "http_error": 1}
    server.files = {f"status/503/{name}": files["1.jpg"] for name in "ab"}
    assert prepare([path], out, "none", settings).kept == 2
    assert verify(out).whole


def test_another_pass_in_which_nothing_arrives_goes_on_with_the_same_command(
    laion: tuple[Path, dict[str, bytes]], server: Server, tmp_path: Path, ray_cluster: None
) -> None:
    path, files = laion
    table = pq.read_table(path).slice(0, 2).to_pydict()
    table["URL"] = [server.url(name) for name in ("0.jpg", "status/503")]
    pq.write_table(pa.table(table), path)
    prepare([path], tmp_path / "first", "none", config())
    with pytest.raises(NothingUsable, match="the same command asks for them again"):
        retry(tmp_path / "first", tmp_path / "second")
    server.files["status/503"] = files["1.jpg"]
    assert retry(tmp_path / "first", tmp_path / "second").kept == 1


def test_columns_whose_names_another_pass_needs_travel_all_the_same(
    laion: tuple[Path, dict[str, bytes]], server: Server, tmp_path: Path, ray_cluster: None
) -> None:
    """With the names that they have in the first DATASET, however many passes there are."""
    path, files = laion
    table = {
        "link": [server.url(name) for name in ("0.jpg", "status/503/a", "status/503/b")],
        "text": [f"number {i}" for i in range(3)],
        "url": ["page 0", "page 1", "page 2"],
        "captions": [[f"one {i}", f"two {i}"] for i in range(3)],
        "source_row": [10, 11, 12],
        "uid": ["x", "y", "z"],
    }
    pq.write_table(pa.table(table), path)
    named = ColumnsConfig(url="link", captions=("text",), key="source_row")
    settings = config().model_copy(update={"columns": named})
    prepare([path], tmp_path / "first", "none", settings)
    server.files["status/503/a"] = files["1.jpg"]
    retry(tmp_path / "first", tmp_path / "second")
    server.files["status/503/b"] = files["2.jpg"]
    retry(tmp_path / "second", tmp_path / "third")
    own = ["source_key", "caption", "input_url", "input_captions", "uid"]
    found = [metadata(tmp_path / name) for name in ("first", "second", "third")]
    assert found[0].select([*own, "source_row"]).to_pylist()[0]["source_row"] == 10
    for i, passed in ((1, found[1]), (2, found[2])):
        assert passed.select([*own, "source_row", "input_source_row"]).to_pylist() == [
            {
                "source_key": str(10 + i),
                "caption": f"number {i}",
                "input_url": f"page {i}",
                "input_captions": [f"one {i}", f"two {i}"],
                "uid": "xyz"[i],
                "source_row": i,
                "input_source_row": 10 + i,
            }
        ]
        added = set(passed.column_names) - set(found[0].column_names)
        assert added == {"input_source_row"}
        assert passed["url"].to_pylist() == [table["link"][i]]


def test_another_pass_finds_the_inputs_from_any_folder(
    laion: tuple[Path, dict[str, bytes]],
    server: Server,
    tmp_path: Path,
    ray_cluster: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, files = laion
    table = pq.read_table(path).slice(0, 3).to_pydict()
    table["URL"] = [server.url(f) for f in ("0.jpg", "status/503/a", "status/503/b")]
    pq.write_table(pa.table(table), path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    prepare(["laion.parquet"], Path("first"), "none", config())
    assert verify(Path("first")).whole
    server.files["status/503/a"] = files["1.jpg"]
    retry(Path("first"), Path("second"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    server.files["status/503/b"] = files["2.jpg"]
    assert retry(Path("../second"), Path("third")).kept == 1
    assert verify(Path("third")).whole
