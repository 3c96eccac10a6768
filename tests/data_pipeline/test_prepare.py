"""The whole of `prepare` on a real Ray."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from base.errors import NothingUsable, UserError
from data_pipeline import sources
from data_pipeline.config import Mode, PrepareConfig
from data_pipeline.embed import embed
from data_pipeline.pipeline import prepare, prepare_parts
from data_pipeline.scenes import write_scenes
from data_pipeline.schema.dataset import METADATA_SCHEMA, read_commit, read_dataset, shard_sizes
from data_pipeline.status import status
from data_pipeline.verify import verify

pytestmark = pytest.mark.usefixtures("ray_cluster")
SMALL = PrepareConfig(image_size=64, samples_per_shard=40)
Tree = Callable[[Path], dict[str, str]]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, shared_data: Path, ray_cluster: None) -> Path:
    """The photographs with embeddings, three shards."""
    out = tmp_path_factory.mktemp("photos") / "dataset"
    prepare([shared_data / "photos"], out, "random:1", SMALL)
    return out


def test_photos_keep_all_captions_and_columns(photos: Path) -> None:
    info = read_dataset(photos)
    assert (info.input, info.kept, info.rejected, info.shards) == (106, 106, 0, 3)
    assert shard_sizes(photos, info) == [40, 40, 26]
    report = verify(photos)
    assert report.problems == ()
    assert report.samples == 106
    table = pq.read_table(photos / "metadata")
    assert table.schema.names[: len(METADATA_SCHEMA)] == METADATA_SCHEMA.names
    assert "input_width" in table.schema.names
    rows = table.to_pylist()
    assert [row["row"] for row in rows] == list(range(106))
    assert sum(len(row["captions"]) == 5 for row in rows) > 40
    keys = [row["source_key"] for row in rows]
    assert keys == sorted(keys, key=os.fsencode)
    assert all((row["width"], row["height"]) == (64, 64) for row in rows)
    assert all(row["original_width"] == row["input_width"] for row in rows)
    assert all(row["sha256"] == row["input_sha256"] for row in rows)


def test_none_then_embed_gives_the_bytes_of_one_pass(
    photos: Path, shared_data: Path, tmp_path: Path, tree: Tree
) -> None:
    out = tmp_path / "dataset"
    first = prepare([shared_data / "photos"], out, "none", SMALL)
    assert first.clip is None
    assert pq.read_table(out / "metadata")["similarity"].null_count == 106
    assert verify(out).whole
    embed(out, "random:1")
    assert tree(out) == tree(photos)


def test_a_finished_dataset_is_left_alone(photos: Path, shared_data: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in photos.rglob("*") if path.is_file()}
    prepare([shared_data / "photos"], photos, "random:1", SMALL)
    prepare([shared_data / "photos"], photos, "none", SMALL)
    embed(photos, "random:1")
    after = {path: path.stat().st_mtime_ns for path in photos.rglob("*") if path.is_file()}
    assert after == before


def test_clips_are_not_mixed_but_stand_side_by_side(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "dataset"
    shutil.copytree(photos, out)
    with pytest.raises(UserError, match="--as NAME"):
        embed(out, "random:2")
    embed(out, "random:2", "second")
    assert verify(out).embeddings == ("", "second")
    assert verify(out).whole
    rows = np.load(out / "embeddings" / "second" / "img_emb" / "img_emb_00000.npy")
    assert rows.shape == (40, 32)
    with pytest.raises(UserError, match="differs from this CLIP"):
        embed(out, "random:3", "second")
    with pytest.raises(UserError, match="letters, digits"):
        embed(out, "random:2", "../up")


def test_lost_files_are_made_again(
    photos: Path, shared_data: Path, tmp_path: Path, tree: Tree
) -> None:
    out = tmp_path / "dataset"
    shutil.copytree(photos, out)
    (out / "shards" / "00001.tar").unlink()
    (out / "img_emb" / "img_emb_00000.npy").write_bytes(b"short")
    (out / "commits" / "00002.json").unlink()
    prepare([shared_data / "photos"], out, "random:1", SMALL)
    assert tree(out) == tree(photos)


def test_emoji_lie_on_white(shared_data: Path, tmp_path: Path) -> None:
    table = pq.read_table(shared_data / "emoji" / "captions.parquet")
    some = table.take(list(range(0, table.num_rows, 40)))
    folder = tmp_path / "in"
    for name in some["file"].to_pylist():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(shared_data / "emoji" / name, folder / name)
    pq.write_table(some, folder / "captions.parquet")
    info = prepare([folder], tmp_path / "out", "none", SMALL)
    assert (info.kept, info.rejected) == (some.num_rows, 0)
    assert verify(tmp_path / "out").whole
    import webdataset

    tars = sorted(str(path) for path in (tmp_path / "out" / "shards").glob("*.tar"))
    round_ones = [
        sample["jpg"]
        for sample in webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8")
        if sample["json"]["set"] in ("openmoji", "noto")
    ]
    corners = np.stack([picture[0, 0] for picture in round_ones])
    assert (corners > 240).all(axis=1).mean() > 0.9


def test_evil_pictures_are_all_accounted_for(shared_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    shutil.copytree(shared_data / "evil", folder)
    pictures = [p for p in folder.rglob("*") if p.is_file() and p.suffix not in (".txt", ".csv")]
    for path in pictures:
        path.with_suffix(".txt").write_text(path.name)
    found = len([p for p in pictures if p.parent.name != "licences"])
    info = prepare([folder], tmp_path / "out", "random:0", SMALL)
    assert info.kept + info.rejected == info.input >= found
    assert info.kept > 140
    report = verify(tmp_path / "out")
    assert report.problems == ()
    reasons = status(tmp_path / "out").reasons
    assert reasons["truncated_image"] >= 2
    assert reasons["too_many_pixels"] >= 3
    assert sum(reasons.values()) == info.rejected


def test_a_shard_of_which_nothing_is_kept_has_no_files_to_trip_over(
    tmp_path: Path, pairs_folder: Callable[[Path, int], Path]
) -> None:
    folder = pairs_folder(tmp_path / "in", 12)
    for i in range(4, 8):
        (folder / f"{i:05d}.jpg").write_bytes(b"broken")
    config = PrepareConfig(image_size=32, samples_per_shard=4)
    info = prepare([folder], tmp_path / "out", "random:0", config)
    assert (info.kept, info.rejected, info.shards) == (8, 4, 3)
    commit = read_commit(tmp_path / "out", 1)
    assert commit is not None
    assert list(commit.files) == ["rejected/rejected_00001.parquet"]
    assert sorted(p.name for p in (tmp_path / "out" / "shards").iterdir()) == [
        "00000.tar",
        "00002.tar",
        "sizes.json",
    ]
    assert not list((tmp_path / "out").glob("*/*_00001.npy"))
    assert verify(tmp_path / "out").whole
    assert json.loads((tmp_path / "out" / "shards" / "sizes.json").read_text()) == {
        "00000.tar": 4,
        "00002.tar": 4,
    }


def test_nothing_usable_leaves_no_finished_dataset(
    tmp_path: Path, pairs_folder: Callable[[Path, int], Path]
) -> None:
    folder = pairs_folder(tmp_path / "in", 2)
    for path in folder.glob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(NothingUsable, match=r"none of the 2 rows.*empty_image 2"):
        prepare([folder], tmp_path / "out", "none", SMALL)
    with pytest.raises(UserError, match="not finished"):
        read_dataset(tmp_path / "out")


def test_forms_of_one_corpus_give_the_same_samples(tmp_path: Path) -> None:
    tables = {}
    config = PrepareConfig(image_size=64, samples_per_shard=10)
    for form in ("folder", "parquet", "webdataset"):
        write_scenes(tmp_path / form, 25, 3, form, "train", 64, workers=1)
        prepare([tmp_path / form], tmp_path / f"{form}-out", "none", config)
        assert verify(tmp_path / f"{form}-out").whole
        tables[form] = pq.read_table(tmp_path / f"{form}-out" / "metadata")
        assert tables[form]["scene"].type == pa.string()
        assert json.loads(tables[form]["scene"][0].as_py())["objects"]
    same = ["key", "caption", "sha256", "phash", "scene"]
    assert tables["folder"].select(same).equals(tables["parquet"].select(same))
    assert tables["folder"].select(same).equals(tables["webdataset"].select(same))


def test_several_inputs_keep_their_order(
    tmp_path: Path, pairs_folder: Callable[[Path, int], Path]
) -> None:
    write_scenes(tmp_path / "scenes", 7, 0, "webdataset", "train", 64, workers=1)
    folder = pairs_folder(tmp_path / "pairs", 6)
    config = PrepareConfig(image_size=32, samples_per_shard=5)
    inputs = [folder, tmp_path / "scenes"]
    assert prepare(inputs, tmp_path / "out", "none", config).kept == 13
    keys = pq.read_table(tmp_path / "out" / "metadata")["source_key"].to_pylist()
    assert keys == [f"{i:05d}.jpg" for i in range(6)] + [f"{i:09d}" for i in range(7)]
    with pytest.raises(UserError, match=r"begun with .*pairs, now .*scenes"):
        prepare(inputs[::-1], tmp_path / "out", "none", config)


def test_filters_are_asked_for(tmp_path: Path, pairs_folder: Callable[[Path, int], Path]) -> None:
    folder = pairs_folder(tmp_path / "in", 3)
    (folder / "00001.txt").write_text("x")
    config = PrepareConfig(image_size=32, min_caption=3)
    info = prepare([folder], tmp_path / "out", "none", config)
    assert (info.kept, info.rejected) == (2, 1)
    assert status(tmp_path / "out").reasons == {"caption_too_short": 1}


def test_other_folders_are_not_written_into(
    tmp_path: Path, pairs_folder: Callable[[Path, int], Path]
) -> None:
    folder = pairs_folder(tmp_path / "in", 1)
    with pytest.raises(UserError, match="not empty"):
        prepare([folder], folder, "none", SMALL)
    with pytest.raises(UserError, match="is a file"):
        prepare([folder], folder / "00000.jpg", "none", SMALL)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NothingUsable):
        prepare([tmp_path / "empty"], tmp_path / "out", "none", SMALL)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("absent", ["cluster", "start_pool"])
def test_what_cannot_begin_holds_nobody_to_its_inputs(
    absent: str,
    tmp_path: Path,
    pairs_folder: Callable[[Path, int], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*given: object) -> None:
        raise UserError(f"no {absent}")

    folder, out = pairs_folder(tmp_path / "in", 1), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(f"data_pipeline.pipeline.{absent}", refuse)
        with pytest.raises(UserError, match=f"no {absent}"):
            prepare([folder], out, "random:0", SMALL)
    assert not out.exists()


def test_a_larger_input_becomes_several_datasets(
    tmp_path: Path,
    ray_cluster: None,
    pairs_folder: Callable[[Path, int], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = pairs_folder(tmp_path / "in", 23)
    config = PrepareConfig(image_size=32, samples_per_shard=5)
    prepare([folder], tmp_path / "whole", "none", config)
    monkeypatch.setattr("data_pipeline.plan.MAX_SHARDS", 2)
    scans: list[object] = []
    scan = sources.scan
    monkeypatch.setattr(sources, "scan", lambda *given: scans.append(given) or scan(*given))
    for _ in range(2):  # the second time nothing is left to do
        scans.clear()
        made = list(prepare_parts([folder], tmp_path / "out", "none", config))
        assert len(scans) == 2
        assert [path.name for path, _ in made] == ["out-000", "out-001", "out-002"]
        assert [(info.shards, info.kept) for _, info in made] == [(2, 10), (2, 10), (1, 3)]
    assert not (tmp_path / "out").exists()
    assert all(verify(path).problems == () for path, _ in made)
    whole, *parts = (
        pq.read_table(path / "metadata", columns=["row", "source_key", "phash"])
        for path in (tmp_path / "whole", *(path for path, _ in made))
    )
    assert pa.concat_tables(parts).equals(whole)


def test_shards_made_again_without_the_clip_say_what_is_to_be_done(
    photos: Path, shared_data: Path, tmp_path: Path, tree: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "dataset"
    shutil.copytree(photos, out)
    (out / "shards" / "00001.tar").unlink()
    prepare([shared_data / "photos"], out, "none", SMALL)
    assert "lack the embeddings that others have (random random:1)" in capsys.readouterr().err
    embed(out, "random:1")
    assert tree(out) == tree(photos)


@pytest.mark.parametrize("mode", get_args(Mode))
@pytest.mark.parametrize("sides", [(1, 300), (300, 1), (70_000, 20), (60_000, 1)])
def test_a_thin_picture_costs_its_row_alone(
    tmp_path: Path, ray_cluster: None, mode: Mode, sides: tuple[int, int]
) -> None:
    Image.new("RGB", sides, (10, 200, 30)).save(tmp_path / "thin.png")
    (tmp_path / "thin.txt").write_text("a line")
    Image.new("RGB", (40, 30)).save(tmp_path / "usual.png")
    (tmp_path / "usual.txt").write_text("a picture")
    config = PrepareConfig(image_size=256, mode=mode)
    with TemporaryDirectory(dir=tmp_path.parent) as folder:
        info = prepare([tmp_path], Path(folder) / "out", "random:0", config)
        reasons = status(Path(folder) / "out").reasons
    assert info.kept + info.rejected == 2
    assert set(reasons) <= {"unsupported_image", "too_many_pixels"}
