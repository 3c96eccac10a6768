"""Searching a DATASET: the nearest rows, the CLIP that is refused, a page that is safe."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.errors import UserError
from base.files import read_json, write_json
from data_pipeline.config import PrepareConfig
from data_pipeline.embed import embed
from data_pipeline.pipeline import prepare
from data_pipeline.schema.dataset import ClipInfo, DatasetInfo, FileRecord, img_emb_path
from data_pipeline.search import cli as commands
from data_pipeline.search import embeddings as embeddings_module
from data_pipeline.search.embeddings import EmbeddingSet, open_embeddings
from data_pipeline.search.find import Results, find
from data_pipeline.search.layout import VERSION, IndexRecord
from data_pipeline.search.nearest import nearest_by_index, nearest_exactly
from data_pipeline.search.page import check_place, write_page

HOSTILE = (
    ("<script>document.title = 'x'</script><img src=x onerror=alert(1)>", "javascript:alert(1)"),
    (
        "\"><svg onload=alert(1)> ' onmouseover='alert(2)",
        'https://example.org/"><script>1</script>',
    ),
    ("{{ 7 * 7 }} {% raw %} \x1b[31m", "data:text/html,<script>alert(1)</script>"),
    ("مرحبا \u202e reversed", "JaVaScRiPt://example.org/%0aalert(1)"),
    ("a red circle", "http://[broken"),
    ("x" * 5000, None),
)


@pytest.fixture(scope="module")
def dataset(
    tmp_path_factory: pytest.TempPathFactory,
    picture_bytes: Callable[..., bytes],
    ray_cluster: None,
) -> Path:
    """Three shards of six: hostile captions, nothing kept, plain ones."""
    place = tmp_path_factory.mktemp("search")
    rows = [
        {"jpg": picture_bytes(i), "caption": caption, "url": url}
        for i, (caption, url) in enumerate(HOSTILE)
    ]
    rows += [{"jpg": b"broken", "caption": "x", "url": None}] * 6
    rows += [
        {"jpg": picture_bytes(i), "caption": f"plain {i}", "url": f"https://example.org/{i}.jpg"}
        for i in range(6, 12)
    ]
    pq.write_table(pa.Table.from_pylist(rows), place / "in.parquet")
    config = PrepareConfig(image_size=64, samples_per_shard=6)
    prepare([place / "in.parquet"], place / "dataset", "random:0", config)
    embed(place / "dataset", "random:1", "second")
    return place / "dataset"


def rows_of(dataset: Path, name: str | None = None) -> npt.NDArray[np.float32]:
    """All picture embeddings, without our reader."""
    paths = [img_emb_path(dataset, shard, name) for shard in (0, 2)]
    return np.concatenate([np.load(path) for path in paths]).astype(np.float32)


def with_index(dataset: Path, place: Path) -> Path:
    """A copy that has a flat faiss index with its record."""
    copy = place / "dataset"
    shutil.copytree(dataset, copy)
    rows = rows_of(copy)
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    (copy / "index").mkdir()
    faiss.write_index(index, str(copy / "index" / "image.index"))
    opened = open_embeddings(copy)
    size = (copy / "index" / "image.index").stat().st_size
    record = IndexRecord(
        version=VERSION,
        embeddings=None,
        clip=opened.clip,
        plan_fingerprint=opened.info.plan_fingerprint,
        embeddings_fingerprint=opened.fingerprint(),
        rows=opened.rows,
        index_memory="1G",
        kinds={"image": "Flat"},
        files={"image.index": FileRecord("", size, opened.rows)},
    )
    write_json(copy / "index" / "index.json", record.to_json())
    return copy


def written(root: Path, rows: npt.NDArray[np.float16], sizes: list[int]) -> EmbeddingSet:
    """A set of embeddings of these rows in shards of these sizes."""
    (root / "img_emb").mkdir(parents=True, exist_ok=True)
    starts = [0, *np.cumsum(sizes).tolist()]
    for shard, size in enumerate(sizes):
        if size:
            np.save(img_emb_path(root, shard), rows[starts[shard] : starts[shard + 1]])
    clip = ClipInfo("m", "p", "w", "c", rows.shape[1])
    info = DatasetInfo(1, len(rows), len(rows), 0, len(sizes), 64, "f", clip)
    return EmbeddingSet(root, None, info, clip, tuple(starts))


@given(sizes=st.lists(st.integers(0, 7), min_size=1), data=st.data())
def test_every_row_has_its_place(sizes: list[int], data: st.DataObject) -> None:
    clip = ClipInfo("m", "p", "w", "c", 4)
    info = DatasetInfo(1, sum(sizes), sum(sizes), 0, len(sizes), 64, "f", clip)
    starts = tuple(np.cumsum([0, *sizes]).tolist())
    opened = EmbeddingSet(Path(), None, info, clip, starts)
    expected = [(shard, row) for shard, size in enumerate(sizes) for row in range(size)]
    assert [opened.place(row) for row in range(opened.rows)] == expected


@given(seed=st.integers(0, 999), count=st.integers(1, 40), sizes=st.lists(st.integers(0, 9)))
def test_blocks_give_what_sorting_everything_gives(
    seed: int, count: int, sizes: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    sizes = [*sizes, 1]
    random = np.random.default_rng(seed)
    rows = random.integers(-2, 3, (sum(sizes), 3)).astype(np.float16)  # many are equal
    query = random.integers(-2, 3, 3).astype(np.float32)
    opened = written(tmp_path_factory.mktemp("rows"), rows, sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embeddings_module, "_BLOCK", 4)
        found = nearest_exactly(opened, query, count)
    scores = rows.astype(np.float32) @ query
    expected = sorted(range(len(rows)), key=lambda row: (-scores[row], row))[:count]
    assert found == [(row, scores[row]) for row in expected]
    assert (opened.take(expected) == rows[expected]).all()


def test_text_and_picture_find_what_numpy_finds(dataset: Path, tmp_path: Path) -> None:
    results = find(dataset, "a red circle", "random:0", count=5)
    assert (results.how, results.rows, len(results.hits)) == ("exact", 12, 5)
    assert "no index" in results.why
    stored = results.hits[3]
    with stored.tar.open("rb") as file:
        jpeg = os.pread(file.fileno(), stored.length, stored.offset)
    (tmp_path / "query.jpg").write_bytes(jpeg)
    by_picture = find(dataset, None, "random:0", image=tmp_path / "query.jpg", count=99)
    assert len(by_picture.hits) == 12
    best = by_picture.hits[0]
    assert best.key == stored.key
    assert best.score == pytest.approx(1, abs=1e-3)
    rows, keys = rows_of(dataset), pq.read_table(dataset / "metadata")["key"].to_pylist()
    scores = dict(zip(keys, rows @ rows[keys.index(stored.key)], strict=True))
    for hit in by_picture.hits:
        assert hit.score == pytest.approx(scores[hit.key], abs=2e-3)


def test_an_index_finds_the_same(dataset: Path, tmp_path: Path) -> None:
    copy = with_index(dataset, tmp_path)
    indexed = find(copy, "plain 3", "random:0", count=4)
    exact = find(copy, "plain 3", "random:0", count=4, exact=True)
    assert (indexed.how, indexed.why, exact.how) == ("index", "", "exact")
    assert [hit.to_json() for hit in indexed.hits] == [hit.to_json() for hit in exact.hits]


def test_scores_are_those_of_the_rows_also_when_the_index_is_rough(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(3000, 16)).astype(np.float16)
    rows /= np.linalg.norm(rows.astype(np.float32), axis=1, keepdims=True).astype(np.float16)
    opened = written(tmp_path, rows, [1000, 2000])
    index = faiss.index_factory(16, "IVF8,PQ4x4", faiss.METRIC_INNER_PRODUCT)
    index.train(rows.astype(np.float32))
    index.add(rows.astype(np.float32))
    faiss.extract_index_ivf(index).nprobe = 8
    faiss.write_index(index, str(tmp_path / "image.index"))
    record = IndexRecord(1, None, opened.clip, "f", "e", 3000, "1G", {}, {})
    query = rows[1234].astype(np.float32)
    found = nearest_by_index(tmp_path / "image.index", record, opened, query, 5)
    truth = rows.astype(np.float32) @ query
    assert found[0] == (1234, pytest.approx(truth[1234], rel=1e-5))
    assert [score for _, score in found] == pytest.approx([truth[row] for row, _ in found])
    assert [score for _, score in found] == sorted((s for _, s in found), reverse=True)


def test_an_index_of_something_else_is_not_used(dataset: Path, tmp_path: Path) -> None:
    copy = with_index(dataset, tmp_path)
    path = copy / "index" / "index.json"
    record = read_json(path)
    write_json(path, {**record, "plan_fingerprint": "other"})
    assert "of other embeddings" in find(copy, "x", "random:0").why
    write_json(path, record)
    assert find(copy, "x", "random:0").how == "index"
    commit = copy / "commits" / "00000.json"  # as when the same CLIP was run on another device
    data = read_json(commit)
    data["files"]["img_emb/img_emb_00000.npy"]["sha256"] = "0" * 64
    write_json(commit, data)
    assert "of other embeddings" in find(copy, "x", "random:0").why
    write_json(path, {**record, "version": 2})
    with pytest.raises(UserError, match=r"index.json: version: got 2, expected 1"):
        find(copy, "x", "random:0")
    write_json(path, {**record, "clip": {}})
    with pytest.raises(UserError, match="not a record of an index"):
        find(copy, "x", "random:0")
    write_json(path, {**record, "embeddings_fingerprint": open_embeddings(copy).fingerprint()})
    index = copy / "index" / "image.index"
    index.write_bytes(b"x" * index.stat().st_size)
    with pytest.raises(UserError, match=r"image.index: .*data index.*--exact"):
        find(copy, "x", "random:0")
    assert find(copy, "x", "random:0", exact=True).why == "asked for"
    index.write_bytes(b"cut")
    assert "image.index is damaged: 3 bytes, expected" in find(copy, "x", "random:0").why


def test_another_clip_is_refused(dataset: Path) -> None:
    with pytest.raises(UserError, match=r"random random:0, which differs .* in weights_sha256"):
        find(dataset, "x", "random:1")
    assert find(dataset, "x", "random:1", name="second").hits
    with pytest.raises(UserError, match="differs"):
        find(dataset, "x", "random:0", name="second")


def test_a_weights_file_may_have_another_name(dataset: Path) -> None:
    opened = open_embeddings(dataset)
    renamed = ClipInfo(**{**vars(opened.clip), "pretrained": "elsewhere.pt"})
    embeddings_module.require_same_clip(opened, renamed)
    with pytest.raises(UserError, match="in preprocess_sha256;"):
        other = ClipInfo(**{**vars(opened.clip), "preprocess_sha256": "0"})
        embeddings_module.require_same_clip(opened, other)


class Tags(HTMLParser):
    """Every tag with its attributes, and the text between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(results: Results, folder: Path) -> Tags:
    path = folder / "results.html"
    write_page(results, path)
    return Tags(path.read_text())


def test_the_page_shows_captions_as_they_are_and_runs_none(dataset: Path, tmp_path: Path) -> None:
    results = find(dataset, "<script>alert(0)</script>", "random:0", count=12)
    page = page_of(results, tmp_path)
    allowed = set(
        re.findall(r"\w+", "html head meta title style body header div h1 p ol li img span a")
    )
    assert {tag for tag, _ in page.tags} == allowed
    names = {name for _, attributes in page.tags for name in attributes}
    assert not {name for name in names if name.startswith("on")}
    links = {a["href"] for tag, a in page.tags if tag == "a"}
    assert links == {hit.url for hit in results.hits if (hit.url or "").startswith("https://")}
    for caption, url in HOSTILE[:5]:
        assert caption in page.text
        assert str(url) in page.text
    assert "<script>alert(0)</script>" in page.text
    (policy,) = [a["content"] for _, a in page.tags if a.get("http-equiv")]
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_the_page_holds_the_stored_pictures(dataset: Path, tmp_path: Path) -> None:
    results = find(dataset, "plain", "random:0", count=12)
    sources = [a["src"] for tag, a in page_of(results, tmp_path).tags if tag == "img"]
    for source, hit in zip(sources, results.hits, strict=True):
        assert source is not None
        kind, data = source.split(",")
        assert kind == "data:image/jpeg;base64"
        shard, row = divmod(int(hit.key), 10_000)
        assert hit.tar.name == f"{shard:05d}.tar"
        member = subprocess.run(
            ["tar", "-xOf", hit.tar, f"{hit.key}.jpg"], capture_output=True, check=True
        )
        assert base64.b64decode(data) == member.stdout, row


def test_a_damaged_tar_is_told(dataset: Path, tmp_path: Path) -> None:
    copy = tmp_path / "dataset"
    shutil.copytree(dataset, copy)
    results = find(copy, "plain", "random:0", count=12)
    (copy / "shards" / "00002.tar").write_bytes(bytes(5000))
    with pytest.raises(UserError, match=r"00002.tar: the picture of 0000200\d\d cannot be read"):
        write_page(results, tmp_path / "results.html")
    assert not (tmp_path / "results.html").exists()


def test_damaged_embeddings_and_metadata_are_told(dataset: Path, tmp_path: Path) -> None:
    copy = tmp_path / "dataset"
    shutil.copytree(dataset, copy)
    (copy / "metadata" / "metadata_00002.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"metadata_00002.parquet: cannot be read"):
        find(copy, "x", "random:0")
    np.save(img_emb_path(copy, 2), np.zeros((6, 31), np.float16))
    with pytest.raises(UserError, match=r"got float16 \[6, 31\], expected float16 \[6, 32\]"):
        find(copy, "x", "random:0")
    img_emb_path(copy, 2).write_bytes(b"nothing")
    with pytest.raises(UserError, match="not an npy file"):
        find(copy, "x", "random:0")
    img_emb_path(copy, 2).unlink()
    with pytest.raises(UserError, match=r"data embed .* again"):
        find(copy, "x", "random:0")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (None, {}, "query: got none, expected one of"),
        (" ", {}, "query: got ' '"),
        ("\udcff", {}, r"query: got '\\udcff', expected"),
        ("x", {"image": Path("x.jpg")}, "query: got both"),
        ("x", {"count": 0}, "count: got 0, expected 1 to 1000"),
        ("x", {"clip": "none"}, "clip: got 'none'"),
        ("x", {"clip": "what"}, "random:SEED"),
        ("x", {"name": "../.."}, r"embeddings: got '../..', expected a further set .*: second"),
        (None, {"image": Path("/dev/null")}, "expected a picture's file"),
        (None, {"image": Path(__file__)}, "test_search.py: not_an_image"),
    ],
)
def test_mistakes_are_one_line(
    dataset: Path, text: str | None, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        find(dataset, text, **{"clip": "random:0", **options})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("command", [commands.index, commands.search])
def test_a_dataset_in_a_store_is_to_be_copied_first(command: Callable[..., None]) -> None:
    options = {"clip": "random:0", "text": "x"} if command is commands.search else {}
    with pytest.raises(UserError, match=r"s3://b/d: expected a local folder; copy it to one"):
        command("s3://b/d", **options)


def test_a_dataset_without_embeddings_says_what_to_run(
    tmp_path: Path, pairs_folder: Callable[[Path, int], Path], ray_cluster: None
) -> None:
    prepare([pairs_folder(tmp_path / "in", 2)], tmp_path / "out", "none", PrepareConfig())
    with pytest.raises(UserError, match="has no embeddings; run `unclip data embed"):
        find(tmp_path / "out", "x", "random:0")


def test_pages_lie_outside_the_dataset(dataset: Path, tmp_path: Path) -> None:
    check_place(dataset, tmp_path / "results.html")
    for place in (dataset / "results.html", dataset / "index" / "x.html"):
        with pytest.raises(UserError, match="outside the DATASET"):
            check_place(dataset, place)
    with pytest.raises(UserError, match="which is a folder"):
        check_place(dataset, tmp_path)


def test_the_command_opens_the_page_where_there_is_a_display(dataset: Path, tmp_path: Path) -> None:
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > "{tmp_path}/opened"\n')
    browser.chmod(0o755)
    command = [sys.executable, "-m", "data_pipeline", "search", dataset, "plain 7"]
    command += ["--clip", "random:0", "--count", "2"]
    surroundings = {**os.environ, "BROWSER": str(browser), "DISPLAY": ":99"}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=surroundings, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "opened").read_text().strip() == (tmp_path / "results.html").as_uri()
    assert len(done.stdout.splitlines()) == 2
    (tmp_path / "opened").unlink()
    done = subprocess.run(
        [*command, "--json", "--out", "other.html"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=surroundings,
        timeout=120,
    )
    told = json.loads(done.stdout)
    assert (told["how"], told["page"], len(told["results"])) == ("exact", "other.html", 2)
    assert not (tmp_path / "opened").exists()
