"""Inputs and a DATASET in Google's store, as an emulator plays it: those of a local disk."""

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from base.errors import UserError
from base.lease import Lease
from base.places import place
from base.stores import impatient
from data_pipeline import sources
from data_pipeline.sources import Source
from data_pipeline.verify import verify

if TYPE_CHECKING:
    from gcs_server import GcsServer

CAP = 1 << 20


@pytest.fixture(scope="module")
def gcs() -> Iterator["GcsServer"]:
    """A store on loopback, which the environment's usual variable leads to."""
    if find_spec("gcsfs") is None or find_spec("gcp_storage_emulator") is None:
        assert not os.environ.get("CI"), "gcsfs or gcp-storage-emulator is absent: see pyproject"
        pytest.skip("gcsfs or gcp-storage-emulator is absent")
    with pytest.MonkeyPatch.context() as patch:
        # Read when gcsfs is imported: otherwise it asks Google itself which kind a bucket is of.
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        from gcs_server import GcsServer
        from gcsfs import GCSFileSystem

        server = GcsServer()
        patch.setenv("STORAGE_EMULATOR_HOST", server.url)
        GCSFileSystem.clear_instance_cache()  # clients keep the address that they began with
        yield server
        GCSFileSystem.clear_instance_cache()
        server.close()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, picture_bytes: Callable[..., bytes]) -> Path:
    """A folder of pairs, a tar that ends early, a table with a path that leads nowhere."""
    root = tmp_path_factory.mktemp("inputs")
    (root / "pairs").mkdir()
    with tarfile.open(root / "some.tar", "w") as tar:
        for i in range(4):
            stem = root / "pairs" / f"ü#?% {i}"
            stem.with_suffix(".jpg").write_bytes(picture_bytes(i))
            stem.with_suffix(".txt").write_text(f"picture {i}")
            for suffix, data in (("jpg", picture_bytes(i)), ("txt", b"text")):
                member = tarfile.TarInfo(f"{i}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    whole = (root / "some.tar").read_bytes()
    (root / "some.tar").write_bytes(whole[: len(whole) // 2])
    paths = ["pairs/ü#?% 0.jpg", "pairs/none.jpg"]
    pq.write_table(pa.table({"path": paths, "caption": ["a", "b"]}), root / "paths.parquet")
    return root


def described(found: Source) -> Any:
    rows = sources.read(found, 0, found.rows, CAP)
    told = [(replace(row, problem=None), row.problem and row.problem.args) for row in rows]
    return found.kind, found.rows, found.extra, told


def test_inputs_are_those_on_a_disk(gcs: "GcsServer", inputs: Path, tmp_path: Path) -> None:
    root = gcs.put(inputs, gcs.bucket("in") + "/deep")
    for name in ("pairs", "some.tar", "paths.parquet"):
        (local,) = sources.scan([inputs / name], tmp_path)
        (remote,) = sources.scan([f"{root}/{name}"], tmp_path)
        assert described(remote) == described(local)
    with pytest.raises(UserError, match=r"gs://in/deep/none: no such file or folder"):
        sources.scan([f"{root}/none"], tmp_path)


def test_a_lease_is_put_only_where_there_is_none(gcs: "GcsServer") -> None:
    root = place(gcs.bucket("leases"))
    with Lease(root):
        with pytest.raises(FileExistsError), impatient():
            (root / "unclip.lock").write_bytes(b"another's", mode="create")
        assert b"another" not in (root / "unclip.lock").read_bytes()
    assert gcs.tree("gs://leases") == {}


DRIVER = """
import json, sys, typer
from data_pipeline.cli import app
from data_pipeline.cluster import cluster
command = typer.main.get_command(app)
with cluster():
    for arguments in json.loads(sys.argv[1]):
        command.main(args=arguments, standalone_mode=False)
"""


def test_a_dataset_is_made_and_verified(
    gcs: "GcsServer", inputs: Path, tmp_path: Path, tree: Callable[[Path], dict[str, str]]
) -> None:
    """The workers' own clients write it; the bytes are those of a local one."""
    remote = f"{gcs.bucket('out')}/dataset"
    local, given = str(tmp_path / "local"), str(inputs / "pairs")
    settings = ["--set", "image_size=32", "--set", "samples_per_shard=2"]
    commands = [
        ["prepare", given, "--out", local, *settings],
        ["prepare", given, "--out", remote, *settings],
        ["verify", remote],
    ]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(commands)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{remote}: whole, 4 samples in 2 shards" in done.stdout
    assert gcs.tree(remote) == tree(Path(local))
    metadata = place(remote) / "metadata" / "metadata_00001.parquet"
    metadata.write_bytes(metadata.read_bytes()[:-1])
    assert not verify(place(remote)).whole
