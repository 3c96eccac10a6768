"""A full disk: one line, nothing half-written taken for whole, and on it goes with room."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from base.command import line_and_code
from base.errors import UserError
from data_pipeline import pipeline
from data_pipeline.config import PrepareConfig
from data_pipeline.embed import embed
from data_pipeline.pipeline import prepare
from data_pipeline.scenes import Form, write, write_scenes
from data_pipeline.schema.dataset import read_dataset
from data_pipeline.verify import verify

CONFIG = PrepareConfig(samples_per_shard=8)


def test_a_disk_that_fills_up_while_shards_are_written(
    small_disk: Path,
    fill_disk: Callable[[Path], Path],
    tmp_path: Path,
    pairs_folder: Callable[[Path, int], Path],
    tree: Callable[[Path], dict[str, str]],
    ray_cluster: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Somebody else takes the space after it was looked for; then gives it back."""
    pairs = pairs_folder(tmp_path / "pairs", 40)
    out = small_disk / "data"
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "require_free_space", lambda folder, size: fill_disk(small_disk))
        with pytest.raises((UserError, OSError)) as caught:
            prepare([pairs], out, "none", CONFIG)
    line, code = line_and_code(caught.value)
    assert code == 2
    assert os.strerror(errno.ENOSPC).lower() in line.lower()
    assert "\n" not in line
    with pytest.raises(UserError):
        read_dataset(out)

    (small_disk / "filler").unlink()
    prepare([pairs], out, "none", CONFIG)
    assert verify(out).whole
    prepare([pairs], tmp_path / "undisturbed", "none", CONFIG)
    assert tree(out) == tree(tmp_path / "undisturbed")


def test_too_little_room_is_refused_before_anything_is_written(
    small_disk: Path, tmp_path: Path, pairs_folder: Callable[[Path, int], Path], ray_cluster: None
) -> None:
    with (small_disk / "filler").open("wb") as file:
        file.write(bytes((64 << 20) - (64 << 10)))
    with pytest.raises(UserError, match="of disk") as caught:
        prepare([pairs_folder(tmp_path / "pairs", 400)], small_disk / "data", "none", CONFIG)
    assert line_and_code(caught.value)[1] == 2


@pytest.mark.parametrize("form", ["folder", "parquet", "webdataset"])
def test_a_disk_that_fills_up_while_scenes_are_written(
    form: Form,
    small_disk: Path,
    fill_disk: Callable[[Path], Path],
    tmp_path: Path,
    tree: Callable[[Path], dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def scenes(out: Path) -> None:
        write_scenes(out, 1200, 0, form, "train", 64, workers=2)

    with monkeypatch.context() as patch:
        patch.setattr(write, "require_free_space", lambda folder, size: fill_disk(small_disk))
        with pytest.raises(OSError, match="No space left") as caught:
            scenes(small_disk / "scenes")
    line, code = line_and_code(caught.value)
    assert (code, line.startswith("no space left on device")) == (2, True)
    assert not (small_disk / "scenes" / "scenes.json").exists()

    (small_disk / "filler").unlink()
    scenes(small_disk / "scenes")
    scenes(tmp_path / "undisturbed")
    assert tree(small_disk / "scenes") == tree(tmp_path / "undisturbed")


def test_a_disk_that_is_full_when_embeddings_are_written(
    small_disk: Path,
    fill_disk: Callable[[Path], Path],
    tmp_path: Path,
    pairs_folder: Callable[[Path, int], Path],
    tree: Callable[[Path], dict[str, str]],
    ray_cluster: None,
) -> None:
    pairs = pairs_folder(tmp_path / "pairs", 24)
    prepare([pairs], small_disk / "data", "none", CONFIG)
    before = tree(small_disk / "data")
    filler = fill_disk(small_disk)
    with pytest.raises((UserError, OSError)) as caught:
        embed(small_disk / "data", "random:0")
    line, code = line_and_code(caught.value)
    assert (code, line.startswith("no space left on device")) == (2, True)
    filler.unlink()
    assert tree(small_disk / "data") == before
    assert verify(small_disk / "data").whole

    embed(small_disk / "data", "random:0")
    prepare([pairs], tmp_path / "undisturbed", "random:0", CONFIG)
    assert tree(small_disk / "data") == tree(tmp_path / "undisturbed")
