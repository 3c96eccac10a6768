"""Work that a killed run left behind reaches no later one."""

import shutil
from pathlib import Path

import pytest

from data_pipeline.attempts import attempt_at, work_folder
from data_pipeline.config import PrepareConfig
from data_pipeline.pixels import Job, make_shard
from data_pipeline.plan import persist
from data_pipeline.scenes import write_scenes
from data_pipeline.schema.dataset import WORK_FOLDER
from data_pipeline.shards import HashedFile
from data_pipeline.sources import scan


def test_a_run_leaves_nothing_of_any_run(tmp_path: Path) -> None:
    killed = tmp_path / WORK_FOLDER / "0123" / "00000-abcd"
    killed.mkdir(parents=True)
    (killed / "00000.tar").write_bytes(b"half")
    with work_folder(tmp_path) as run:
        assert list((tmp_path / WORK_FOLDER).iterdir()) == [run]
        with attempt_at(run, 3) as (folder, place), attempt_at(run, 3) as (other, _):
            assert folder == place
            assert folder.name.startswith("00003-")
            assert other != folder
    assert list(tmp_path.iterdir()) == []


def test_who_comes_too_late_makes_no_folder_and_no_file(tmp_path: Path) -> None:
    with work_folder(tmp_path) as run, attempt_at(run, 0) as (attempt, _):
        pass
    with pytest.raises(FileNotFoundError):
        HashedFile(attempt / "00000.tar")
    with pytest.raises(FileNotFoundError), attempt_at(run, 0):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_worker_overtaken_by_the_next_run_fails_and_leaves_nothing(tmp_path: Path) -> None:
    """At whichever of its files it is: the tar is open when its folder goes."""
    write_scenes(tmp_path / "scenes", 8, 0, "webdataset", "train", 32, workers=1)
    out = tmp_path / "out"
    with work_folder(out) as run:
        config = PrepareConfig(image_size=32)
        found = scan([tmp_path / "scenes"], run)
        (plan,) = persist(out, found, config)
        job = Job(plan, tuple(found), found[0].extra, config)
        with attempt_at(run, plan.shard) as (attempt, _):
            make_shard(job, attempt)
        shutil.rmtree(attempt)
        attempt.mkdir()
        late = HashedFile(attempt / "00000.tar")
    late.write(b"the rest")
    late.close()
    with pytest.raises(FileNotFoundError):
        make_shard(job, attempt)
    assert sorted(path.name for path in out.iterdir()) == ["plan"]
