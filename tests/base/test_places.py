"""Places: what addresses mean, and a real object store and web server behind them."""

import os
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import base.stores
from base.errors import UserError
from base.files import read_json, require_free_space, sha256_file, write_json
from base.lease import Lease
from base.owner import Owner
from base.places import (
    below,
    beside,
    children,
    files_below,
    folder_place,
    local_folder,
    parts_of,
    place,
)
from base.scratch import scratch_folder
from base.store_errors import StoreError, StoreRefused, StoreSilent
from base.store_lease import StoreRecord
from base.stores import StorePath, impatient

parts = st.text("abz09._-#?% é", min_size=1, max_size=6).filter(lambda text: set(text) != {"."})


def test_text_names_a_local_path_or_an_address() -> None:
    assert place("a/b") == Path("a/b")
    assert place(Path("s3:/a")) == Path("s3:/a")
    assert str(place("s3://bucket/a/b/")) == "s3://bucket/a/b"
    assert str(place("S3://bucket")) == "s3://bucket"
    assert pickle.loads(pickle.dumps(place("s3://bucket/a"))) == place("s3://bucket/a")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ftp://host/a", "got ftp://, expected a local path, s3://, gs:// or https://"),
        ("s3://", "no bucket"),
        ("s3:///key", "no bucket"),
        ("https://", "no host"),
    ],
)
def test_other_addresses_are_refused(address: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        place(address)


def test_a_dataset_is_no_file_on_the_web() -> None:
    with pytest.raises(UserError, match=r"https://host/x: expected a local folder, s3:// or gs://"):
        folder_place("https://user:secret@host/x?signature=secret")


@given(st.lists(parts, min_size=1, max_size=4))
def test_names_are_those_of_pathlib(names: list[str]) -> None:
    key, path = PurePosixPath("bucket", *names), place("s3://bucket")
    assert isinstance(path, StorePath)
    for name in names:
        path = path / name
    assert str(path) == f"s3://{key}"
    assert (path.name, path.suffix) == (key.name, key.suffix)
    assert str(path.parent) == f"s3://{key.parent}"
    assert str(path.relative_to(StorePath("s3://bucket"))) == "/".join(names)


def test_paths_in_a_table_are_relative_to_it() -> None:
    table = StorePath("s3://bucket/data/table.parquet")
    assert beside(Path("data/table.parquet"), "a.jpg") == Path("data/a.jpg")
    assert str(beside(table, "../pictures/./a.jpg")) == "s3://bucket/pictures/a.jpg"
    assert str(beside(Path("table.csv"), "s3://other/a.jpg")) == "s3://other/a.jpg"


@pytest.mark.parametrize("path", ["/etc/passwd", "../../x", "..", "http://host/a", "s3://"])
def test_a_table_in_a_store_names_nothing_outside_its_bucket(path: str) -> None:
    with pytest.raises(ValueError, match=r"not a path below|no bucket"):
        beside(StorePath("s3://bucket/data/table.parquet"), path)


def test_objects_are_written_read_listed_and_removed(store: Any, tmp_path: Path) -> None:
    root = below(place(store.bucket("objects")), "folder")
    assert not root.exists()
    assert list(root.iterdir()) == []
    write_json(root / "a" / "x.json", {"a": 1})
    assert read_json(root / "a" / "x.json") == {"a": 1}
    (tmp_path / "file").write_bytes(bytes(range(256)))
    root.joinpath("b").upload(tmp_path / "file")
    assert sha256_file(root / "b") == sha256_file(tmp_path / "file")
    store.client.put_object(Bucket="objects", Key="folder/", Body=b"")  # as consoles do
    store.client.put_object(Bucket="objects", Key="folder/late", Body=b"")  # no list is kept
    assert [path.name for path in children(root)] == ["a", "b", "late"]
    assert files_below(root) == ["a/x.json", "b", "late"]
    assert [path.is_dir() for path in children(root)] == [True, False, False]
    assert (root / "a").is_dir()
    assert not (root / "a").is_file()
    assert (root / "b").stat().st_size == 256
    (root / "b").copy_to(root / "c")
    assert (root / "c").read_bytes(3) == b"\0\1\2"
    assert (root / "late").read_bytes(3) == b""
    (root / "b").unlink()
    (root / "b").unlink(missing_ok=True)
    root.remove_below()
    store.client.delete_object(Bucket="objects", Key="folder/")
    assert not root.exists()
    with pytest.raises(FileNotFoundError):
        (root / "c").read_bytes()
    require_free_space(root, 1 << 60)  # a store has room


def test_neighbouring_parts_come_in_one_request(store: Any) -> None:
    path = place(store.bucket("parts") + "/file")
    data = os.urandom(300_000)
    path.write_bytes(data)
    store.seen.clear()
    with parts_of(path) as part:
        found = [part(at, 1000) for at in range(0, 299_000, 1500)]
        assert part(299_500, 1000) == data[299_500:]
    assert found == [data[at : at + 1000] for at in range(0, 299_000, 1500)]
    assert sum(request.method == "GET" for request in store.seen) == 1


def test_what_may_pass_is_tried_again(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = place(store.bucket("passing") + "/file")
    monkeypatch.setattr(base.stores, "PAUSES", (0.0, 0.0))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    left = [503, 500] * 2

    store.fault = lambda request: left.pop() if left else None
    path.write_bytes(b"whole")
    assert left == []
    left += [500, 503] * 2
    with path.open() as file:
        assert file.read() == b"whole"
    assert left == []
    left += [500] * 2
    with (
        pytest.raises(StoreSilent, match=r"s3://passing/file: the store answers with errors"),
        impatient(),
    ):
        path.read_bytes()


def test_what_stays_is_told_in_one_line(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = place(store.bucket("staying") + "/file")
    store.fault = lambda request: 403
    with pytest.raises(StoreRefused, match=r"s3://staying/file: access denied \(PutObject: Acc"):
        path.write_bytes(b"")
    with pytest.raises(StoreRefused, match=r"s3://staying/file: access denied"):
        path.is_file()  # not known to be absent
    store.fault = lambda request: None
    for ask in (StorePath.exists, StorePath.read_bytes, lambda path: path.write_bytes(b"")):
        with pytest.raises(StoreRefused, match=r"s3://nobody-made-it/file: no such bucket"):
            ask(StorePath("s3://nobody-made-it/file"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "the store does not answer (Could not conn"),
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "no credentials (Unable to"),
    ],
)
def test_a_store_that_cannot_be_asked(
    store: Any, change: dict[str, str | None], message: str
) -> None:
    environment = {**os.environ, "AWS_MAX_ATTEMPTS": "1", **change}
    given = {key: value for key, value in environment.items() if value is not None}
    code = "from base.places import folder_place; folder_place('s3://bucket/a')"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=given, capture_output=True, text=True)
    assert f": s3://bucket/a: {message}" in done.stderr


def test_a_scheme_whose_package_is_missing() -> None:
    code = "import sys; sys.modules['gcsfs'] = None; from base.places import place\n"
    code += "place('gs://bucket/a').exists()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "gs://: needs a package that is not installed; pip install 'unclip[gcs]'" in done.stderr


def owner(**changes: Any) -> Owner:
    """Somebody on another machine."""
    return replace(Owner.me(), **{"host": "elsewhere", **changes})


def test_a_lease_in_a_store(store: Any) -> None:
    folder = place(store.bucket("lease") + "/dataset")
    record = StoreRecord(folder / "unclip.lock")
    with Lease(folder), Lease(folder):
        other = record.take(owner())
        assert other is not None
        assert other.pid == os.getpid()
    assert store.tree("s3://lease") == {}
    dead = owner(renewed=1.0)
    assert record.take(dead) is None
    with Lease(folder):
        assert not record.renew(dead)  # it was silent for too long
        record.drop(dead)
        assert list(store.tree("s3://lease")) == ["dataset/unclip.lock"]
    assert store.tree("s3://lease") == {}


@pytest.mark.parametrize("stale", [False, True])
def test_of_two_who_want_a_lease_at_once_one_gets_it(store: Any, stale: bool) -> None:
    """The second one comes between the first one's look and its writing."""
    record = StoreRecord(place(store.bucket(f"race-{stale}".lower()) + "/unclip.lock"))
    if stale:
        assert record.take(owner(renewed=1.0)) is None
    quick, slow = owner(token="quick", pid=1), owner(token="slow", pid=2)
    taken: list[Owner | None] = []

    def interrupt(request: Any) -> None:
        if request.method == "PUT" and not taken:
            taken.append(quick)
            taken[0] = record.take(quick)

    store.fault = interrupt
    assert record.take(slow) == quick
    assert taken == [None]


class Ranges(SimpleHTTPRequestHandler):
    """A folder's files, in parts if asked for; `fault` may say otherwise."""

    def __init__(self, *arguments: Any, fault: Callable[[str], int | None], **rest: Any) -> None:
        self.fault = fault
        super().__init__(*arguments, **rest)

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def answer(self, body: bool) -> None:
        if status := self.fault(self.path):
            return self.send_error(status)
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return self.send_error(404)
        data = path.read_bytes()
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        whole = match is None or path.name.startswith("whole")
        part = data if whole or match is None else data[int(match[1]) : int(match[2]) + 1]
        self.send_response(200 if whole else 206)
        self.send_header("Content-Length", str(len(part)))
        if path.name.startswith("whole"):
            self.send_header("Accept-Ranges", "none")
        elif match is not None:
            end = int(match[1]) + len(part) - 1
            self.send_header("Content-Range", f"bytes {match[1]}-{end}/{len(data)}")
        self.end_headers()
        if body:
            self.wfile.write(part)
        return None

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def web_of(folder: Path, fault: Callable[[str], int | None] = lambda path: None) -> Iterator[str]:
    handler = partial(Ranges, directory=folder, fault=fault)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_file_on_the_web_is_read_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(100_000)
    (tmp_path / "a.parquet").write_bytes(data)
    (tmp_path / "whole.tar").write_bytes(data)
    monkeypatch.setattr(base.stores, "PAUSES", (0.0, 0.0))
    failing = iter([503, 503, None, 500])
    with web_of(tmp_path, lambda path: next(failing, None)) as here:
        path = place(f"{here}/a.parquet?token=secret")
        assert (path.name, path.suffix) == ("a.parquet", ".parquet")
        assert path.stat().st_size == len(data)
        with parts_of(path) as part:
            assert part(99_000, 5000) == data[99_000:]
            assert part(10, 20) == data[10:30]
        with (
            pytest.raises(UserError, match="gives no size or no parts"),
            parts_of(place(f"{here}/whole.tar")),
        ):
            pass
        assert not place(f"{here}/none").exists()
        with pytest.raises(UserError, match="can only be read"):
            path.write_bytes(b"")
    with (
        web_of(tmp_path, lambda path: 403) as here,
        pytest.raises(StoreRefused, match=r"/a.parquet: access denied \(HTTP status 403\)"),
    ):
        place(f"{here}/a.parquet?token=secret").exists()
    with pytest.raises(StoreError, match="does not answer"), impatient():
        place(f"{here}/a.parquet").exists()


def test_scratch_folders_of_killed_processes_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with scratch_folder() as folder:
        prefix = folder.name.rpartition(f"{os.getpid()}-")[0]
    (tmp_path / f"{prefix}999999999-abc").mkdir()
    others = [tmp_path / f"{prefix}{os.getpid()}-abc", tmp_path / "unclip-0-999999999-abc"]
    for other in others:
        other.mkdir()
    with scratch_folder() as folder:
        assert sorted(tmp_path.iterdir()) == sorted([folder, *others])
    assert sorted(tmp_path.iterdir()) == sorted(others)


def test_a_local_folder_is_no_address_and_how_to_copy_one_is_told() -> None:
    assert local_folder("a/b") == Path("a/b")
    for address, how in (
        ("s3://b/d", "aws s3 sync s3://b/d FOLDER"),
        ("gs://b/d", "gcloud storage rsync -r gs://b/d FOLDER"),
    ):
        with pytest.raises(UserError, match=f"{address}: expected a local folder; .*`{how}`"):
            local_folder(address)
    with pytest.raises(UserError, match=r"https://h/d: expected a local folder$"):
        local_folder("https://h/d?secret=1")
