"""The commands as people type them: results, messages, exit codes."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


def data(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "data_pipeline", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_the_whole_road(tmp_path: Path) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "dataset"
    made = data("synth", corpus, "--count", 12, "--form", "parquet", "--size", 64, "--json")
    assert json.loads(made.stdout)["count"] == 12
    sets = ["--set", "image_size=64", "--set", "samples_per_shard=5"]
    prepared = data("prepare", corpus, "--out", out, *sets, "--json")
    assert prepared.returncode == 0, prepared.stderr
    info = json.loads(prepared.stdout)
    assert (info["kept"], info["shards"], info["clip"]) == (12, 3, None)
    assert "12/12 samples" in prepared.stderr
    embedded = data("embed", out, "--clip", "random:0")
    assert "12 samples embedded" in embedded.stdout
    checked = json.loads(data("verify", out, "--json").stdout)
    assert (checked["whole"], checked["samples"], checked["problems"]) == (True, 12, [])
    told = json.loads(data("status", out, "--json").stdout)
    assert (told["finished"], told["shards_embedded"], told["rows_done"]) == (True, 3, 12)
    assert "3/3, 3 embedded" in data("status", out).stdout
    (out / "shards" / "00001.tar").write_bytes(b"")
    broken = data("verify", out)
    assert broken.returncode == 2
    assert "shards/00001.tar" in broken.stderr
    again = data("prepare", corpus, "--out", out, "--set", "image_size=32")
    assert again.returncode == 2
    assert again.stderr.splitlines()[-1].startswith("error: ")
    assert "image_size" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["prepare", "{in}", "--out", "{out}", "--set", "image_sise=3"],
            2,
            "did you mean image_size",
        ),
        (["prepare", "{in}", "--out", "{out}", "--set", "jpeg_quality=high"], 2, "a whole number"),
        (["prepare", "{in}", "--out", "{out}", "--config", "{in}/no.yaml"], 2, "no.yaml"),
        (["prepare", "{in}", "--out", "{out}", "--clip", "what"], 2, "random:SEED"),
        (["prepare", "{in}/none", "--out", "{out}"], 2, "no such file"),
        (["prepare", "{empty}", "--out", "{out}"], 3, "empty"),
        (
            ["prepare", "{in}", "--out", "{out}", "--ray-address", "localhost:1"],
            69,
            "no Ray cluster",
        ),
        (["verify", "{in}"], 2, "not a DATASET"),
        (["embed", "{in}", "--clip", "random:0"], 2, "not a DATASET"),
        (["prepare", "{in}", "--out", "{out}", "--clip", "ViT-B-32:gone.pt"], 2, "gone.pt"),
        (["status", "{in}"], 2, "not a DATASET"),
        (["synth", "{out}", "--count", "0"], 2, "count"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path,
    pairs_folder: Callable[[Path, int], Path],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    places = {"in": pairs_folder(tmp_path / "in", 1), "out": tmp_path / "out"}
    places["empty"] = tmp_path / "empty"
    places["empty"].mkdir()
    ended = data(*(argument.format(**places) for argument in arguments))
    assert ended.returncode == code, ended.stderr
    *before, line = ended.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    # A machine with much to do may be told that CLIP takes long to load.
    assert [other for other in before if not other.endswith(": still loading")] == []
    assert ended.stdout == ""


def test_help_and_preparing_without_clip_need_no_torch(
    tmp_path: Path, pairs_folder: Callable[[Path, int], Path]
) -> None:
    folder = pairs_folder(tmp_path / "in", 2)
    code = (
        "import sys, pathlib; from data_pipeline import cli, pipeline, verify;"
        f"pipeline.prepare([{str(folder)!r}], pathlib.Path({str(tmp_path / 'out')!r}));"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "prepare" in data("--help").stdout
