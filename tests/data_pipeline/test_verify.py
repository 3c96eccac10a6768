"""`verify` finds every kind of damage, wherever it is."""

import json
import os
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from base.errors import UserError
from data_pipeline import cli
from data_pipeline.commits import done
from data_pipeline.config import PrepareConfig
from data_pipeline.embed import embed
from data_pipeline.pipeline import prepare
from data_pipeline.schema.dataset import EMBEDDED, PLACES_FILE, read_commit
from data_pipeline.shard_files import HashedReader
from data_pipeline.shards import write_embeddings
from data_pipeline.status import status
from data_pipeline.verify import require_whole, verify

DEVICES = re.compile(rb'(?<="devices": \[\n    ")[^"]*')  # of a commit


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory,
    ray_cluster: None,
    pairs_folder: Callable[[Path, int], Path],
) -> Path:
    folder = pairs_folder(tmp_path_factory.mktemp("in"), 11)
    (folder / "00003.jpg").write_bytes(b"broken")
    out = tmp_path_factory.mktemp("out") / "dataset"
    prepare([folder], out, "random:0", PrepareConfig(image_size=32, samples_per_shard=6))
    embed(out, "random:1", "second")
    return out


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "dataset"))


def problems(dataset: Path) -> list[str]:
    """What verify says, whether it reports or refuses."""
    try:
        return list(verify(dataset).problems)
    except UserError as error:
        return [str(error)]


def test_a_whole_dataset_has_no_problems(whole: Path) -> None:
    report = verify(whole)
    assert report.problems == ()
    assert (report.shards, report.samples, report.embeddings) == (2, 10, ("", "second"))
    require_whole(report)


def proven(dataset: Path) -> list[Path]:
    """Every file but the note of where the inputs lay, without which a DATASET is whole."""
    files = sorted(path for path in dataset.rglob("*") if path.is_file())
    return [path for path in files if path != dataset / PLACES_FILE]


def test_a_flipped_bit_is_found_in_every_file(copy: Path) -> None:
    """But in the name of a device or a place, of which there is nothing that would prove it."""
    generator = random.Random(0)
    files = proven(copy)
    assert len(files) == 23
    for path in files:
        original = path.read_bytes()
        for _ in range(6):
            damaged = bytearray(original)
            damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
            if DEVICES.sub(b"", damaged) == DEVICES.sub(b"", original):
                continue
            path.write_bytes(damaged)
            assert problems(copy), f"{path} was changed and nobody saw"
        path.write_bytes(original)
    assert problems(copy) == []


def test_every_missing_file_is_found(copy: Path) -> None:
    for path in proven(copy):
        moved = copy.parent / "moved"
        os.replace(path, moved)
        found = problems(copy)
        assert found, f"{path} was removed and nobody saw"
        assert not any("Errno" in line for line in found), found
        os.replace(moved, path)
    assert problems(copy) == []


@pytest.mark.parametrize(
    "name", ["img_emb/notes.txt", "shards/00007.tar", "stray.bin", "embeddings/second/x", ".work/x"]
)
def test_what_does_not_belong_is_found(copy: Path, name: str) -> None:
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_bytes(b"x")
    assert any("does not belong" in problem for problem in problems(copy))


def recommit(copy: Path, name: str) -> None:
    """Makes the commit agree with a changed file, as a clever hand would."""
    import hashlib

    data = (copy / name).read_bytes()
    path = copy / "commits" / "00000.json"
    commit = json.loads(path.read_text())
    commit["files"][name] |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    path.write_text(json.dumps(commit, indent=2, ensure_ascii=False) + "\n")


def test_embeddings_of_another_order_are_found_though_their_hash_is_right(copy: Path) -> None:
    name = "img_emb/img_emb_00000.npy"
    rows = np.load(copy / name)
    (copy / name).unlink()
    write_embeddings(copy / name, rows[::-1])
    recommit(copy, name)
    assert problems(copy) == [
        "metadata/metadata_00000.parquet: similarity is not the cosine of the stored rows"
    ]


def test_rows_that_are_not_normalised_are_found(copy: Path) -> None:
    name = "text_emb/text_emb_00000.npy"
    rows = np.load(copy / name)
    (copy / name).unlink()
    write_embeddings(copy / name, (rows * 1.01).astype(np.float16))
    recommit(copy, name)
    assert "norm is off" in problems(copy)[0]


def test_metadata_that_disagrees_with_the_tar_is_found(copy: Path) -> None:
    name = "metadata/metadata_00000.parquet"
    table = pq.read_table(copy / name)
    captions = table["caption"].to_pylist()
    swapped = table.set_column(
        4, table.schema.field(4), [[captions[1], captions[0], *captions[2:]]]
    )
    pq.write_table(swapped, copy / name)
    recommit(copy, name)
    assert any("caption of .txt, metadata" in problem for problem in problems(copy))


def test_every_file_of_a_shard_is_read_once_and_no_tar_whole(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Counter[str]()
    largest = Counter[Path]()

    class Counted(HashedReader):
        def read(self, size: int) -> bytes:
            data = super().read(size)
            name = Path(self._file.name)
            largest[name] = max(largest[name], len(data))
            return data

    plain = Path.open

    def counting(path: Path, *arguments: Any, **options: Any) -> Any:
        opened[path.relative_to(whole).as_posix()] += 1
        return plain(path, *arguments, **options)

    monkeypatch.setattr("data_pipeline.shard_files.HashedReader", Counted)
    monkeypatch.setattr(Path, "open", counting)
    assert verify(whole).problems == ()
    members = pq.read_table(whole / "metadata", columns=["jpg_length"])["jpg_length"]
    assert set(largest) == set((whole / "shards").glob("*.tar"))
    assert max(largest.values()) == max(members.to_pylist())
    files = read_commit(whole, 0).files | read_commit(whole, 0, "second").files  # type: ignore
    shared = {"embeddings/second/clip.json"}  # of every shard
    assert {name: opened[name] for name in files if name not in shared} == dict.fromkeys(
        set(files) - shared, 1
    )


def test_a_tar_is_hashed_to_its_end_wherever_the_first_problem_is(copy: Path) -> None:
    path = copy / "shards" / "00000.tar"
    data = bytearray(path.read_bytes())
    data[0] ^= 1  # in the first header: nothing behind it is looked at
    path.write_bytes(data)
    assert problems(copy) == [
        "shards/00000.tar: 000000000.jpg: its header or offset is not as promised",
        "shards/00000.tar: its SHA-256 is not the committed one",
    ]


def test_a_further_set_follows_pictures_that_were_made_again(
    tmp_path: Path,
    ray_cluster: None,
    pairs_folder: Callable[[Path, int], Path],
    picture_bytes: Callable[..., bytes],
) -> None:
    """A shard's picture is another one of the same size; the other shard stays as it is."""
    folder, out = pairs_folder(tmp_path / "in", 4), tmp_path / "out"
    config = PrepareConfig(image_size=32, samples_per_shard=2)
    pictures = [picture_bytes(50), picture_bytes(51)]
    one, other = (data.ljust(max(map(len, pictures)), b"\0") for data in pictures)
    (folder / "00001.jpg").write_bytes(one)
    prepare([folder], out, "none", config)
    embed(out, "random:1", "second")
    stale = np.load(out / "embeddings/second/img_emb/img_emb_00000.npy")
    kept = (out / "embeddings/second/img_emb/img_emb_00001.npy").stat().st_mtime_ns
    (folder / "00001.jpg").write_bytes(other)
    (out / "shards" / "00000.tar").unlink()
    prepare([folder], out, "none", config)
    assert verify(out).problems == (
        "embeddings/second/commits/00000.json: its rows were made of another tar; "
        "run `unclip data embed` again",
    )
    embed(out, "random:1", "second")
    assert verify(out).whole
    fresh = np.load(out / "embeddings/second/img_emb/img_emb_00000.npy")
    assert (fresh[0] == stale[0]).all()
    assert (fresh[1] != stale[1]).any()
    assert (out / "embeddings/second/img_emb/img_emb_00001.npy").stat().st_mtime_ns == kept


def test_a_further_set_that_does_not_say_its_tars_is_made_again(copy: Path) -> None:
    """As those of earlier versions do not."""
    path = copy / "embeddings/second/commits/00000.json"
    told = path.read_bytes()
    commit = json.loads(told)
    del commit["tar_sha256"]
    path.write_text(json.dumps(commit, indent=2, ensure_ascii=False) + "\n")
    assert problems(copy) == [
        "embeddings/second/commits/00000.json: its rows do not say of which tar they "
        "are; run `unclip data embed` again"
    ]
    assert done(copy, range(2), EMBEDDED, "second") == {1}
    embed(copy, "random:1", "second")
    assert path.read_bytes() == told
    assert problems(copy) == []


def test_a_mix_of_devices_is_allowed_and_told(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(copy).devices == status(copy).devices == {"": ("cpu",), "second": ("cpu",)}
    for name, devices in (("commits/00001.json", ["A GPU"]), ("commits/00000.json", None)):
        commit = json.loads((copy / name).read_bytes())
        del commit["devices"]
        commit |= {"devices": devices} if devices else {}
        (copy / name).write_text(json.dumps(commit, indent=2, ensure_ascii=False) + "\n")
    report = verify(copy)
    assert report.whole
    assert report.devices == {"": ("A GPU", "not recorded"), "second": ("cpu",)}
    cli.status(str(copy))
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("devices")]
    assert told == ["devices   A GPU, not recorded", "devices   cpu (second)"]


def test_what_is_no_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a DATASET"):
        verify(tmp_path)
    (tmp_path / "dataset.json").write_text('{"version": 2}')
    with pytest.raises(UserError, match="version: got 2, expected 1"):
        verify(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        verify(tmp_path)


def test_require_whole_names_the_first_problem(copy: Path) -> None:
    (copy / "shards" / "00000.tar").unlink()
    with pytest.raises(UserError, match=r"shards/00000.tar: is missing"):
        require_whole(verify(copy))
