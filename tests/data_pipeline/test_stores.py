"""Inputs and DATASETs in an object store: the same rows and bytes as on a local disk."""

import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from web import Server

from base.config import parse_config
from base.errors import UserError
from base.lease import Lease
from base.places import place
from base.store_errors import StoreError
from data_pipeline import sources
from data_pipeline.attempts import attempt_at, work_folder
from data_pipeline.commits import done, publish, read_commits
from data_pipeline.curate.config import CurateConfig
from data_pipeline.curate.run import curate
from data_pipeline.schema.dataset import PIXELS, VERSION, Commit, FileRecord, rejected_path
from data_pipeline.sources import Source
from data_pipeline.sources.embeddings import read_vectors
from data_pipeline.verify import verify

Tree = Callable[[Path], dict[str, str]]
Picture = Callable[..., bytes]
MAX_BYTES = 1 << 20


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, picture_bytes: Picture) -> Path:
    """Inputs of every kind, with rows that are in order and rows that are not."""
    root = tmp_path_factory.mktemp("inputs")
    pictures = [picture_bytes(i) for i in range(6)]
    write_pairs(root / "pairs", pictures)
    write_tables(root / "tables", pictures)
    write_embeddings(root / "vectors")
    (root / "tars").mkdir()
    for number in range(2):
        write_tar(root / "tars" / f"{number}.tar", pictures)
    whole = (root / "tars" / "1.tar").read_bytes()
    (root / "tars" / "1.tar").write_bytes(whole[:10_000])  # within a picture
    return root


def write_pairs(folder: Path, pictures: list[bytes]) -> None:
    """Some below folders, with json, without a caption, hidden, empty, too large."""
    for i, picture in enumerate(pictures):
        stem = folder / ("deep/ü#?%" if i % 2 else "flat") / f"{i}"
        stem.parent.mkdir(parents=True, exist_ok=True)
        stem.with_suffix(".jpg").write_bytes(picture)
        stem.with_suffix(".txt").write_text(f"picture {i}\nagain")
        stem.with_suffix(".json").write_text(json.dumps({"number": i}))
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "a.jpg").write_bytes(pictures[0])
    (folder / "alone.jpg").write_bytes(pictures[0])
    for name, data in (("empty", b""), ("large", bytes(MAX_BYTES + 1))):
        (folder / f"{name}.jpg").write_bytes(data)
        (folder / f"{name}.txt").write_text(name)


def write_tables(folder: Path, pictures: list[bytes]) -> None:
    """With bytes in a column, with paths, as text and packed."""
    (folder / "img").mkdir(parents=True)
    for i, picture in enumerate(pictures):
        (folder / "img" / f"{i}.jpg").write_bytes(picture)
    captions = [f"picture {i}" for i in range(6)]
    numbers = list(range(6))
    table = pa.table({"jpg": pictures, "caption": captions, "number": numbers})
    pq.write_table(table, folder / "bytes.parquet", row_group_size=2)
    paths = [f"img/{i}.jpg" for i in range(4)] + ["img/none.jpg", ""]
    table = pa.table({"path": paths, "caption": captions, "number": numbers})
    pq.write_table(table, folder / "paths.parquet", row_group_size=2)
    lines = [json.dumps({"file": p, "text": c}) for p, c in zip(paths, captions, strict=True)]
    text = "\n".join([*lines, "no json"])
    with pa.output_stream(folder / "lines.jsonl.zst", compression="zstd") as file:
        file.write(text.encode())
    rows = "path,caption\n" + "".join(f"{p},{c}\n" for p, c in zip(paths, captions, strict=True))
    (folder / "rows.csv.gz").write_bytes(gzip.compress(rows.encode()))


def write_embeddings(folder: Path) -> None:
    """As LAION published them."""
    random = np.random.default_rng(0)
    for kind in ("img_emb", "text_emb", "metadata"):
        (folder / kind).mkdir(parents=True)
    for number in range(2):
        for kind in ("img_emb", "text_emb"):
            rows = random.normal(size=(3, 8)).astype(np.float16)
            np.save(folder / kind / f"{kind}_{number}.npy", rows)
        table = pa.table({"caption": ["a", "b", None], "url": ["u", "v", "w"]})
        pq.write_table(table, folder / "metadata" / f"metadata_{number}.parquet")


def write_tar(path: Path, pictures: list[bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for i, picture in enumerate(pictures):
            for suffix, data in (("jpg", picture), ("txt", b"text"), ("json", b'{"n": 1}')):
                member = tarfile.TarInfo(f"{i}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def rows_of(found: Source) -> list[Any]:
    return [
        (replace(row, problem=None), row.problem and row.problem.args)
        for row in sources.read(found, 0, found.rows, MAX_BYTES)
    ]


def described(found: Source) -> Any:
    return found.kind, found.rows, found.extra, rows_of(found)


KINDS = ["pairs", "tars", *(f"tables/{n}" for n in ("bytes.parquet", "paths.parquet"))]
KINDS += ["tables/lines.jsonl.zst", "tables/rows.csv.gz"]


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_in_a_store_are_those_on_a_disk(
    store: Any, inputs: Path, tmp_path: Path, kind: str
) -> None:
    bucket = store.bucket(f"in-{KINDS.index(kind)}")
    store.put(inputs / kind.partition("/")[0], f"{bucket}/deep/{kind.partition('/')[0]}")
    local = sources.scan([inputs / kind], tmp_path)
    remote = sources.scan([f"{bucket}/deep/{kind}"], place(f"{bucket}/work"))
    assert [described(found) for found in remote] == [described(found) for found in local]
    assert any(problem for found in local for _, problem in rows_of(found)) or "bytes" in kind
    middle = sources.read(remote[0], 2, 2, MAX_BYTES)
    assert [row.source_key for row in middle] == [r.source_key for r, _ in rows_of(local[0])[2:4]]


@pytest.mark.parametrize("kind", ["pairs", "tars/0.tar", "tables/bytes.parquet"])
def test_a_fingerprint_in_a_store_follows_every_byte_but_not_the_place(
    store: Any, inputs: Path, tmp_path: Path, kind: str
) -> None:
    """As the store tells of them: a picture of the same size is another one, a copy is none."""

    def scanned(where: str, folder: Path) -> list[str]:
        address = store.put(folder, f"{store.bucket(where)}/{folder.name}")
        rest = kind.partition("/")[2]
        found = sources.scan([f"{address}/{rest}" if rest else address], tmp_path)
        return [source.fingerprint for source in found]

    begin = kind.partition("/")[0]
    first = scanned(f"one-{begin}", inputs / begin)
    assert scanned(f"two-{begin}", inputs / begin) == first
    folder = Path(shutil.copytree(inputs / begin, tmp_path / begin))
    changed = {
        "pairs": "flat/0.jpg",
        "tars": "0.tar",
        "tables": "bytes.parquet",
    }
    file = folder / changed[begin]
    data = bytearray(file.read_bytes())
    data[600] ^= 1  # of a tar, within its first picture
    file.write_bytes(data)
    assert scanned(f"three-{begin}", folder) != first


def test_published_embeddings_in_a_store(store: Any, inputs: Path, tmp_path: Path) -> None:
    address = store.put(inputs / "vectors", store.bucket("vectors") + "/deep/vectors")
    local = sources.scan([inputs / "vectors"], tmp_path)
    remote = sources.scan([address], tmp_path)
    assert [described(found) for found in remote] == [described(found) for found in local]
    for found, same in zip(remote, local, strict=True):
        for rows, others in zip(read_vectors(found, 1, 2), read_vectors(same, 1, 2), strict=True):
            assert np.array_equal(rows, others)


def test_a_tar_is_indexed_without_its_data(store: Any, tmp_path: Path) -> None:
    big = os.urandom(8 << 20)
    write_tar(tmp_path / "big.tar", [big] * 3)
    address = store.put(tmp_path / "big.tar", store.bucket("big") + "/big.tar")
    (found,) = sources.scan([address], tmp_path)
    asked = [request for request in store.seen if request.path.endswith("big.tar")]
    assert sum(request.size or 0 for request in asked) < len(big)
    assert [row.image for row in sources.read(found, 0, 3, 9 << 20)] == [big] * 3


def test_rows_may_name_objects_of_other_places(
    store: Any, tmp_path: Path, picture_bytes: Picture
) -> None:
    bucket = store.bucket("named")
    (tmp_path / "a.jpg").write_bytes(picture_bytes(1))
    address = store.put(tmp_path / "a.jpg", f"{bucket}/a.jpg")
    paths = [address, f"{bucket}/none.jpg", "s3://not-made/a.jpg", "s3://", str(tmp_path / "a.jpg")]
    paths += ["../../a.jpg", "http://169.254.169.254/a.jpg", "a.jpg", "../a.jpg"]
    table = pa.table({"path": paths, "caption": ["x"] * len(paths)})
    pq.write_table(table, tmp_path / "t.parquet")

    def reasons(found: Source) -> list[str]:
        return [problem[0] if problem else "" for _, problem in rows_of(found)]

    (local,) = sources.scan([tmp_path / "t.parquet"], tmp_path / "work")
    expected = ["", "missing_file", "unreadable_file", "bad_path", ""]
    assert reasons(local) == [*expected, "missing_file", "bad_path", "", "missing_file"]
    (remote,) = sources.scan(
        [store.put(tmp_path / "t.parquet", f"{bucket}/deep/t.parquet")], tmp_path / "work"
    )
    expected[-1] = "bad_path"
    assert reasons(remote) == [*expected, "bad_path", "bad_path", "missing_file", ""]


def test_what_keeps_the_store_from_answering_is_no_row_s_fault(
    store: Any, inputs: Path, tmp_path: Path
) -> None:
    bucket = store.bucket("denied")
    store.put(inputs / "pairs", f"{bucket}/pairs")
    (found,) = sources.scan([f"{bucket}/pairs"], tmp_path)
    store.fault = lambda request: 403 if request.path.endswith("4.jpg") else None
    with pytest.raises(StoreError, match=r"s3://denied/pairs/flat/4.jpg: access denied"):
        rows_of(found)


def test_single_files_on_the_web(inputs: Path, tmp_path: Path) -> None:
    with web_of(inputs) as here:
        for kind in ("tables/bytes.parquet", "tables/rows.csv.gz", "tars/0.tar"):
            (remote,) = sources.scan([f"{here}/{kind}?token=x"], tmp_path / kind)
            (local,) = sources.scan([inputs / kind], tmp_path / "work" / kind)
            assert (remote.rows, remote.fingerprint) == (local.rows, local.fingerprint)
            if "csv" not in kind:
                assert rows_of(remote) == rows_of(local)
        (found,) = sources.scan([f"{here}/tables/rows.csv.gz"], tmp_path)
        reasons = [problem and problem[0] for _, problem in rows_of(found)]
        assert reasons == ["bad_path"] * 5 + ["no_image"]
        with pytest.raises(UserError, match="no such file or folder"):
            sources.scan([f"{here}/none.parquet"], tmp_path)


@contextmanager
def web_of(folder: Path) -> Iterator[str]:
    """A web server that gives parts of files, as aiohttp's own does."""
    code = (
        "import asyncio, sys\nfrom aiohttp import web\n"
        "async def main():\n"
        " app = web.Application(); app.router.add_static('/', sys.argv[1])\n"
        " runner = web.AppRunner(app); await runner.setup()\n"
        " await web.TCPSite(runner, '127.0.0.1', 0).start()\n"
        " print(runner.addresses[0][1], flush=True)\n"
        " await asyncio.Event().wait()\n"
        "asyncio.run(main())"
    )
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.kill()


def test_a_run_leaves_nothing_and_lets_no_late_worker_in(store: Any) -> None:
    root = place(store.bucket("attempts") + "/dataset")
    (root / ".work" / "killed" / "00000-ab" / "00000.tar").write_bytes(b"half")
    with work_folder(root) as run:
        with attempt_at(run, 0) as (folder, attempt):
            (folder / "a").write_bytes(b"a")
        assert [path.name for path in attempt.iterdir()] == ["a"]
        assert not folder.exists()
        late = attempt_at(run, 1)
        folder, _ = late.__enter__()
        (folder / "b").write_bytes(b"b")
    with pytest.raises(FileNotFoundError):
        late.__exit__(None, None, None)
    with pytest.raises(FileNotFoundError), attempt_at(run, 2):
        pass
    assert store.tree("s3://attempts") == {}


def test_the_first_commit_wins_and_half_a_shard_is_none(store: Any) -> None:
    root = place(store.bucket("commits") + "/dataset")

    def make(run: Any, shard: int, text: bytes) -> tuple[Any, Commit]:
        path = rejected_path(Path(), shard)
        with attempt_at(run, shard) as (folder, attempt):
            (folder / path.name).write_bytes(text)
        files = {str(path): FileRecord("", len(text), 1)}
        return attempt, Commit(VERSION, PIXELS, shard, 1, 0, 1, files)

    with work_folder(root) as run:
        first, second = make(run, 0, b"first"), make(run, 0, b"late!")
        assert publish(root, *first)
        assert not publish(root, *second)
        assert rejected_path(root, 0).read_bytes() == b"first"
        broken = make(run, 1, b"second")
        store.fault = lambda request: 403 if "00001.parquet" in request.path else None
        with pytest.raises(StoreError):
            publish(root, *broken)
        assert done(root, range(2), PIXELS) == {0}
        store.fault = lambda request: None
        assert publish(root, *broken)
        assert done(root, range(2), PIXELS) == {0, 1}
        assert [commit.shard for commit in read_commits(root, range(2)) if commit] == [0, 1]
    assert not any(".work" in name for name in store.tree("s3://commits"))


DRIVER = """
import json, sys, typer
from base.command import line_and_code
from data_pipeline.cli import app
from data_pipeline.cluster import cluster
command = typer.main.get_command(app)
with cluster():
    for arguments in json.loads(sys.argv[1]):
        try:
            command.main(args=arguments, standalone_mode=False)
        except Exception as error:
            print("FAILED", *line_and_code(error))
"""


def run(*commands: list[str]) -> str:
    """Runs commands of ours one after the other on one Ray; what they print."""
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(commands)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "data_pipeline", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, picture_bytes: Picture) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_tar(folder / "a.tar", [picture_bytes(i) for i in range(40)])
    return folder / "a.tar"


PER_SHARD = ["--set", "samples_per_shard=8", "--set", "image_size=32"]


def but_the_names(tree: dict[str, str]) -> dict[str, str]:
    """Without the files that say what the inputs were called, and where they lay."""
    named = ("plan/plan.parquet", "plan/places.json", "dataset.json")
    return {k: v for k, v in tree.items() if k not in named}


def test_a_dataset_in_a_store_has_the_bytes_of_a_local_one(
    store: Any, corpus: Path, tmp_path: Path, tree: Tree, server: Server, picture_bytes: Picture
) -> None:
    bucket = store.bucket("whole")
    address = store.put(corpus, f"{bucket}/in/a.tar")
    local, remote, both = str(tmp_path / "local"), f"{bucket}/out", f"{bucket}/both"
    urls = pa.table({"url": [server.url("status/503/a.jpg")], "caption": ["late"]})
    urls = pa.concat_tables([urls, pa.table({"url": [server.url("b.jpg")], "caption": ["soon"]})])
    pq.write_table(urls, tmp_path / "urls.parquet")
    server.files["b.jpg"] = picture_bytes(1)

    def pause(name: str) -> float:
        if name == "status/503/a.jpg" and server.seen[name] > 1:
            server.files[name] = picture_bytes(2)
        return 0

    server.pause = pause
    listed = store.put(tmp_path / "urls.parquet", f"{bucket}/in/urls.parquet")
    fetching = ["--set", "fetch.allow_private=true", "--set", "fetch.attempts=1"]
    clip = ["--clip", "random:1"]
    told = run(
        ["prepare", str(corpus), "--out", local, *PER_SHARD],
        ["prepare", str(corpus), "--out", remote, *PER_SHARD],
        ["prepare", address, "--out", both, *PER_SHARD, *clip],
        ["embed", local, *clip],
        ["embed", remote, *clip],
        ["embed", remote, *clip, "--as", "second"],
        ["verify", remote],
        ["status", remote],
        ["prepare", listed, "--out", f"{bucket}/urls", *fetching],
        ["retry", f"{bucket}/urls", "--out", f"{bucket}/again"],
        ["verify", f"{bucket}/again"],
    )
    assert "FAILED" not in told
    assert f"{remote}: whole, 40 samples in 5 shards" in told
    assert "shards    5/5, 5 embedded" in told
    assert f"{bucket}/again: 1 of 1 kept" in told
    found = {k: v for k, v in store.tree(remote).items() if not k.startswith("embeddings/")}
    assert found == tree(Path(local))
    assert but_the_names(store.tree(both)) == but_the_names(found)
    curate(Path(local), "some", parse_config({"split": {"val": 0.3}}, CurateConfig, "test"))
    for path in (tmp_path / "local" / "selections").iterdir():
        store.put(path, f"{remote}/selections/{path.name}")
    before = len(store.seen)
    report = verify(place(remote))
    assert (report.problems, report.embeddings) == ((), ("", "second"))
    tar = [r for r in store.seen[before:] if r.path.endswith("00000.tar")]
    size = (tmp_path / "local" / "shards" / "00000.tar").stat().st_size
    assert sum(r.size or 0 for r in tar if r.method == "GET") <= size
    (place(remote) / "selections" / "some.parquet").write_bytes(b"PAR1")
    assert any("some.parquet: its SHA-256" in line for line in verify(place(remote)).problems)
    metadata = place(remote) / "metadata" / "metadata_00003.parquet"
    metadata.write_bytes(metadata.read_bytes()[:-1])
    assert not verify(place(remote)).whole


def test_faults_and_a_killed_driver_change_no_byte(
    store: Any, corpus: Path, tmp_path: Path, tree: Tree
) -> None:
    bucket = store.bucket("faults")
    out, local = f"{bucket}/out", str(tmp_path / "local")
    command = ["prepare", str(corpus), "--out", out, *PER_SHARD]
    commits = place(out) / "commits"

    store.fault = lambda request: time.sleep(0.02)  # so that it is there to be killed
    process = subprocess.Popen(
        [sys.executable, "-m", "data_pipeline", *command], stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not list(commits.iterdir()):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert "dataset.json" not in store.tree(out)

    answered, left = iter(range(1 << 30)), [403]

    def fault(request: Any) -> int | None:
        if left and request.method == "PUT" and request.path.endswith("commits/00004.json"):
            return left.pop()
        return {0: 500, 7: 503}.get(next(answered) % 40)

    store.fault = fault
    told = run(["prepare", str(corpus), "--out", local, *PER_SHARD], command, command)
    store.fault = lambda request: None
    refused = [line for line in told.splitlines() if line.startswith("FAILED")]
    assert refused == [f"FAILED {commits}/00004.json: access denied (PutObject: AccessDenied) 2"]
    assert store.tree(out) == tree(Path(local))


def test_a_second_owner_and_a_target_that_cannot_be_written(
    store: Any, corpus: Path, small_disk: Path
) -> None:
    out = store.bucket("owners") + "/out"
    with Lease(place(out)):
        second = cli("prepare", str(corpus), "--out", out)
    assert second.returncode == 2
    assert second.stderr == (
        f"error: {out}: in use by host {os.uname().nodename}, pid {os.getpid()}; "
        "stop that one or wait\n"
    )
    store.fault = lambda request: 403 if request.method == "PUT" else None
    denied = cli("prepare", str(corpus), "--out", out)
    assert denied.returncode == 2
    assert denied.stderr == f"error: {out}/unclip.lock: access denied (PutObject: AccessDenied)\n"
    assert store.tree(out) == {}
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    local = cli("prepare", str(corpus), "--out", str(small_disk / "out"))
    assert local.returncode == 2
    assert local.stderr == f"error: {small_disk / 'out'}: Read-only file system\n"
