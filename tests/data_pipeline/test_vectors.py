"""Published embeddings without pictures, as LAION gave them out, become a DATASET for priors."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from base.errors import UserError
from data_pipeline import sources
from data_pipeline.config import PrepareConfig
from data_pipeline.embed import embed
from data_pipeline.pipeline import prepare
from data_pipeline.schema.dataset import ClipInfo, read_commit, shard_sizes
from data_pipeline.sources.embeddings import read_vectors
from data_pipeline.status import status
from data_pipeline.verify import verify

DIM = 16
CLIP = "published:ViT-L-14/openai"
CONFIG = PrepareConfig(samples_per_shard=9)
Rows = npt.NDArray[Any]


def some(seed: int, count: int, kind: str = "float16") -> Rows:
    rows = np.random.default_rng(seed).standard_normal((count, DIM))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(kind)


def write(
    folder: Path,
    counts: list[int],
    form: str = "{kind}/{kind}_{number}",
    texts: bool = True,
    kind: str = "float16",
) -> Path:
    """Files as LAION-400M names them unless `form` says otherwise; columns as it has them."""
    start = 0
    for number, count in enumerate(counts):
        names = {k: folder / form.format(kind=k, number=number) for k in
                 ("img_emb", "text_emb", "metadata")}  # fmt: skip
        for path in names.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        np.save(f"{names['img_emb']}.npy", some(number, count, kind))
        if texts:
            np.save(f"{names['text_emb']}.npy", some(100 + number, count, kind))
        rows = range(start, start + count)
        table = {
            "image_path": [f"{row:09d}" for row in rows],
            "caption": [f"caption {row}" for row in rows],
            "NSFW": ["UNLIKELY"] * count,
            "similarity": [row / 100 for row in rows],
            "url": [f"http://host/{row}.jpg" for row in rows],
            "key": [f"{row:09d}" for row in rows],
            "original_width": pa.array([640] * count, pa.int32()),
            "original_height": pa.array([480] * count, pa.int32()),
        }
        pq.write_table(pa.table(table), f"{names['metadata']}.parquet")
        start += count
    return folder


def metadata(dataset: Path) -> list[dict[str, Any]]:
    tables = [pq.read_table(path) for path in sorted(dataset.glob("metadata/*.parquet"))]
    rows: list[dict[str, Any]] = pa.concat_tables(tables).to_pylist()
    return rows


def stored(dataset: Path, kind: str) -> Rows:
    return np.concatenate([np.load(path) for path in sorted((dataset / kind).glob("*.npy"))])


def as_stored(rows: Rows) -> Rows:
    wide = rows.astype(np.float32)
    return (wide / np.linalg.norm(wide, axis=1, keepdims=True)).astype(np.float16)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """Eleven files, so that 10 sorts before 2, of which no shard's border is a file's."""
    place = tmp_path_factory.mktemp("published")
    prepare([write(place / "in", [4] * 11)], place / "out", CLIP, CONFIG)
    return place / "out"


def test_rows_stay_beside_their_captions_in_the_order_of_the_numbers(dataset: Path) -> None:
    report = verify(dataset)
    assert report.problems == ()
    assert (report.shards, report.samples) == (5, 44)
    assert (stored(dataset, "img_emb") == as_stored(np.concatenate(
        [some(i, 4) for i in range(11)]))).all()  # fmt: skip
    assert (stored(dataset, "text_emb") == as_stored(np.concatenate(
        [some(100 + i, 4) for i in range(11)]))).all()  # fmt: skip
    rows = metadata(dataset)
    assert [row["caption"] for row in rows] == [f"caption {i}" for i in range(44)]
    assert [row["source_key"] for row in rows] == [f"{i:09d}" for i in range(44)]
    assert rows[12]["url"] == "http://host/12.jpg"


def test_what_there_is_no_picture_for_is_0_or_empty_and_columns_travel(dataset: Path) -> None:
    row = metadata(dataset)[3]
    assert (row["width"], row["height"], row["phash"], row["jpg_offset"]) == (0, 0, "", 0)
    assert (row["original_width"], row["original_height"]) == (640, 480)
    assert (row["NSFW"], row["input_similarity"], row["image_path"]) == (
        "UNLIKELY", 0.03, "000000003",
    )  # fmt: skip
    image, text = stored(dataset, "img_emb")[3], stored(dataset, "text_emb")[3]
    cosine = float(image.astype(float) @ text.astype(float))
    assert row["similarity"] == pytest.approx(cosine, abs=2e-3)
    assert row["img_norm"] == pytest.approx(1, abs=1e-3)


def test_the_record_says_whose_they_are_and_that_it_is_hearsay(dataset: Path) -> None:
    info = json.loads((dataset / "dataset.json").read_text())
    assert info["clip"] == {
        "model": "ViT-L-14",
        "pretrained": "published:openai",
        "weights_sha256": "",
        "preprocess_sha256": "",
        "dim": DIM,
        "precision": "fp32",
    }
    assert info["image_size"] == 0
    assert json.loads((dataset / "shards" / "sizes.json").read_text()) == {}
    assert [path.name for path in (dataset / "shards").iterdir()] == ["sizes.json"]
    assert status(dataset).shards_embedded == 5


def test_embedding_reader_zips_them(dataset: Path) -> None:
    from embedding_reader import EmbeddingReader

    reader = EmbeddingReader(
        embeddings_folder=str(dataset / "img_emb"),
        metadata_folder=str(dataset / "metadata"),
        meta_columns=["caption"],
        file_format="parquet_npy",
    )
    assert (reader.count, reader.dimension) == (44, DIM)
    batches = list(reader(batch_size=20, show_progress=False))
    assert (np.concatenate([batch[0] for batch in batches]) == stored(dataset, "img_emb")).all()
    captions = [caption for batch in batches for caption in batch[1]["caption"]]
    assert captions == [f"caption {i}" for i in range(44)]


def test_a_stage_that_needs_embeddings_alone_finds_its_shards(dataset: Path) -> None:
    from trainer.loader.shards import whole_dataset

    shards = whole_dataset(dataset)
    assert [ref.size for ref in shards.refs] == [9, 9, 9, 9, 8]
    image, text = shards.embeddings(np.arange(44))
    assert (image == stored(dataset, "img_emb")).all()
    assert (text == stored(dataset, "text_emb")).all()
    assert list(shards.captions(np.array([20]))) == ["caption 20"]
    with pytest.raises(UserError, match=r"00000\.tar: No such file"):
        list(shards.jpegs(np.array([0])))


@pytest.mark.parametrize(
    ("form", "kind", "texts"),
    [
        ("{kind}/{kind}_{number:04d}", "float32", True),
        ("{kind}_{number}", "float16", True),
        ("{kind}/{kind}_{number}", "float16", False),
        ("{kind}_{number:03d}", "float32", False),
    ],
)
def test_other_layouts(
    form: str, kind: str, texts: bool, tmp_path: Path, ray_cluster: None
) -> None:
    folder = write(tmp_path / "in", [3, 2], form, texts, kind)
    out = tmp_path / "out"
    info = prepare([folder], out, CLIP, CONFIG)
    assert (info.input, info.kept) == (5, 5)
    assert verify(out).problems == ()
    assert (stored(out, "img_emb") == as_stored(np.concatenate(
        [some(0, 3, kind), some(1, 2, kind)]))).all()  # fmt: skip
    assert (out / "text_emb").exists() == texts
    rows = metadata(out)
    assert all((row["similarity"] is None) != texts for row in rows)
    assert all((row["text_norm"] is None) != texts for row in rows)


def test_rows_that_are_no_embeddings_are_rejected(tmp_path: Path, ray_cluster: None) -> None:
    folder = write(tmp_path / "in", [20], kind="float32")
    path = folder / "img_emb" / "img_emb_0.npy"
    image, texts = np.load(path), np.load(folder / "text_emb" / "text_emb_0.npy")
    image[2] = 0
    image[4, 3] = np.nan
    image[6, 1] = np.inf
    image[8] *= 1e38
    image[10] *= 12.5  # a raw projection
    texts[12] = 1e-6
    np.save(path, image)
    np.save(folder / "text_emb" / "text_emb_0.npy", texts)
    parquet = folder / "metadata" / "metadata_0.parquet"
    table = pq.read_table(parquet).to_pydict()
    table["caption"][14] = None
    pq.write_table(pa.table(table), parquet)
    info = prepare([folder], tmp_path / "out", CLIP, PrepareConfig())
    assert (info.kept, info.rejected) == (14, 6)
    rejected = pq.read_table(tmp_path / "out" / "rejected").to_pylist()
    assert [(row["row"], row["reason"]) for row in rejected] == [
        *[(i, "bad_embedding") for i in (2, 4, 6, 8, 12)],
        (14, "no_caption"),
    ]
    assert rejected[0]["message"] == ("the picture's embedding has norm 0, expected 0.01 to 1000")
    assert rejected[4]["message"].startswith("the caption's embedding has norm")
    norms = {row["row"]: row["img_norm"] for row in metadata(tmp_path / "out")}
    assert norms[10] == pytest.approx(12.5, abs=1e-3)
    assert verify(tmp_path / "out").problems == ()


def test_damaged_metadata_costs_its_rows_alone(tmp_path: Path, ray_cluster: None) -> None:
    folder = write(tmp_path / "in", [9, 9])
    path = folder / "metadata" / "metadata_0.parquet"
    data = bytearray(path.read_bytes())
    data[4:200] = b"\xff" * 196
    path.write_bytes(data)
    info = prepare([folder], tmp_path / "out", CLIP, CONFIG)
    assert (info.kept, info.rejected) == (9, 9)
    assert status(tmp_path / "out").reasons == {"broken_source": 9}
    assert verify(tmp_path / "out").problems == ()


def test_a_shard_of_which_nothing_is_kept(tmp_path: Path, ray_cluster: None) -> None:
    folder = write(tmp_path / "in", [9, 9])
    np.save(folder / "img_emb" / "img_emb_0.npy", np.zeros((9, DIM), np.float16))
    info = prepare([folder], tmp_path / "out", CLIP, CONFIG)
    assert (info.kept, info.rejected, info.shards) == (9, 9, 2)
    commit = read_commit(tmp_path / "out", 0)
    assert commit is not None
    assert list(commit.files) == ["rejected/rejected_00000.parquet"]
    assert verify(tmp_path / "out").problems == ()
    assert shard_sizes(tmp_path / "out", info) == [0, 9]


def test_lost_files_are_made_again_and_another_name_is_refused(
    dataset: Path, tmp_path: Path, tree: Callable[[Path], dict[str, str]]
) -> None:
    out, inputs = Path(shutil.copytree(dataset, tmp_path / "out")), [dataset.parent / "in"]
    (out / "img_emb" / "img_emb_00001.npy").unlink()
    (out / "commits" / "00003.json").unlink()
    with pytest.raises(UserError, match=r"begun as embeddings of ViT-L-14 published:openai, now"):
        prepare(inputs, out, "published:ViT-L-14/laion", CONFIG)
    prepare(inputs, out, CLIP, CONFIG)
    assert tree(out) == tree(dataset)
    prepare(inputs, out, CLIP, CONFIG)
    assert tree(out) == tree(dataset)


@pytest.mark.parametrize("name", [None, "second"])
def test_nothing_else_can_be_embedded(dataset: Path, name: str | None) -> None:
    with pytest.raises(UserError, match=r"published:openai and no pictures to embed"):
        embed(dataset, "random:0", name)
    assert not (dataset / "embeddings").exists()


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        ("none", "say of which CLIP, such as --clip published:ViT-L-14/openai"),
        ("random:0", "say of which CLIP"),
        ("published:ViT-L-14", "expected published:MODEL/WEIGHTS"),
    ],
)
def test_whose_they_are_must_be_said(clip: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        prepare([write(tmp_path / "in", [3])], tmp_path / "out", clip, CONFIG)
    assert not (tmp_path / "out").exists()


def test_pictures_and_published_embeddings_do_not_go_together(
    tmp_path: Path, pairs_folder: Callable[[Path, int], Path]
) -> None:
    pairs, folder = pairs_folder(tmp_path / "pairs", 2), write(tmp_path / "in", [3])
    with pytest.raises(UserError, match="pairs: no embeddings, while other inputs are"):
        prepare([folder, pairs], tmp_path / "out", CLIP, CONFIG)
    with pytest.raises(UserError, match="expected a CLIP to embed with"):
        prepare([pairs], tmp_path / "out", CLIP, CONFIG)


def save(place: str, rows: Rows) -> Callable[[Path], object]:
    return lambda folder: np.save(folder / place, rows)


IMAGE, TEXT, TABLE = (
    f"{kind}/{kind}_1.{suffix}"
    for kind, suffix in (("img_emb", "npy"), ("text_emb", "npy"), ("metadata", "parquet"))
)
DAMAGE: dict[str, Callable[[Path], object]] = {
    "rows": save(IMAGE, some(0, 2)),
    "short": lambda f: (f / IMAGE).write_bytes((f / IMAGE).read_bytes()[:-1]),
    "long": lambda f: (f / IMAGE).write_bytes((f / IMAGE).read_bytes() + b"x"),
    "pickle": save(IMAGE, np.array([{"a": 1}] * 3, dtype=object)),
    "ints": save(IMAGE, np.ones((3, DIM), np.int64)),
    "flat": save(IMAGE, np.ones(3, np.float16)),
    "fortran": save(IMAGE, np.asfortranarray(some(0, 3))),
    "npz": lambda f: (f / IMAGE).write_bytes(b"PK\3\4nothing"),
    "width": save(TEXT, np.ones((3, 8), np.float16)),
    "widths": lambda f: [save(name, np.ones((3, 8), np.float16))(f) for name in (IMAGE, TEXT)],
    "no text": lambda f: (f / TEXT).unlink(),
    "no metadata": lambda f: (f / TABLE).unlink(),
    "twice": lambda f: shutil.copy(f / IMAGE, f / "img_emb" / "img_emb_0001.npy"),
    "parquet": lambda f: (f / TABLE).write_bytes(b"x"),
}


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("rows", r"img_emb_1\.npy: got 2 rows, expected 3 as .*metadata_1\.parquet"),
        ("short", r"img_emb_1\.npy: got 223 bytes, expected 224 for \(3, 16\) of float16"),
        ("long", r"got 225 bytes, expected 224"),
        ("pickle", r"img_emb_1\.npy: got object \(3,\) in C order, expected float16 or float32"),
        ("ints", r"got int64 \(3, 16\) in C order"),
        ("flat", r"got float16 \(3,\) in C order"),
        ("fortran", r"got float16 \(3, 16\) in Fortran order"),
        ("npz", r"img_emb_1\.npy: cannot be read"),
        ("width", r"text_emb_1\.npy: got rows of 8, expected 16"),
        ("widths", r"img_emb_1\.npy: got rows of 8, expected 16"),
        ("no text", r"img_emb_1\.npy: captions' embeddings are there for some files alone"),
        ("no metadata", r"img_emb_1\.npy: no metadata with its number"),
        ("twice", r"img_emb_1\.npy: has the number of img_emb_0001\.npy"),
        ("parquet", r"metadata_1\.parquet: cannot be read"),
    ],
)
def test_files_that_do_not_fit_are_one_clear_line(what: str, message: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "in", [3, 3])
    DAMAGE[what](folder)
    with pytest.raises(UserError, match=message) as caught:
        prepare([folder], tmp_path / "out", CLIP, CONFIG)
    assert "\n" not in str(caught.value)


@given(st.integers(0, 40), st.integers(1, 41), st.sampled_from(["<f2", ">f2", "<f4", ">f4"]))
@settings(max_examples=20)
def test_any_block_is_read_as_it_lies(
    tmp_path_factory: pytest.TempPathFactory, first: int, count: int, kind: str
) -> None:
    count = min(count, 41 - first)
    folder = write(tmp_path_factory.mktemp("block"), [41], kind=kind)
    (source,) = sources.scan([folder], folder / ".work")
    image, texts = read_vectors(source, first, count)
    assert texts is not None
    assert (image == some(0, 41, kind)[first : first + count].astype(np.float32)).all()
    assert (texts == some(100, 41, kind)[first : first + count].astype(np.float32)).all()


@given(st.integers(0, 127), st.binary(min_size=1, max_size=4))
def test_any_header_of_an_array_is_read_or_one_clear_line(
    tmp_path_factory: pytest.TempPathFactory, place: int, damage: bytes
) -> None:
    folder = write(tmp_path_factory.mktemp("header"), [3])
    path = folder / "img_emb" / "img_emb_0.npy"
    data = path.read_bytes()
    path.write_bytes(data[:place] + damage + data[place + len(damage) :])
    try:
        (source,) = sources.scan([folder], folder / ".work")
    except UserError as error:
        message = str(error)
    else:
        message = "rows" if source.rows == 3 else ""
    assert message
    assert "\n" not in message


def test_verify_finds_what_does_not_fit_together(dataset: Path, tmp_path: Path) -> None:
    import hashlib

    def problems_after(name: str, change: Callable[[pa.Table], pa.Table]) -> list[str]:
        out = Path(shutil.copytree(dataset, tmp_path / name))
        path = out / "metadata" / "metadata_00000.parquet"
        pq.write_table(change(pq.read_table(path)), path)
        commit = out / "commits" / "00000.json"
        record = json.loads(commit.read_text())
        data = path.read_bytes()
        record["files"]["metadata/metadata_00000.parquet"] |= {
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
        }
        commit.write_text(json.dumps(record, indent=2) + "\n")
        return list(verify(out).problems)

    def put(name: str, value: Any) -> Callable[[pa.Table], pa.Table]:
        def change(table: pa.Table) -> pa.Table:
            place, field = table.schema.get_field_index(name), table.schema.field(name)
            return table.set_column(place, field, pa.array([value] * len(table), field.type))

        return change

    assert problems_after("a", lambda table: table) == []
    where = "metadata/metadata_00000.parquet"
    assert problems_after("b", put("jpg_length", 5)) == [
        f"{where}: jpg_length is told of pictures that are not there"
    ]
    assert problems_after("c", put("similarity", 0.5)) == [
        f"{where}: similarity is not the cosine of the stored rows"
    ]
    assert problems_after("d", put("caption", "another")) != []


def test_the_record_of_the_clip() -> None:
    assert ClipInfo("m", "published:w", "", "", 4).published
    assert not ClipInfo("random", "random:0", "ab", "cd", 4).published
