"""Files are whole or as they were, whenever the writer dies."""

import json
import os
import signal
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.errors import UserError
from base.files import (
    atomic_path,
    read_json,
    require_free_space,
    sha256_file,
    write_atomic,
    write_json,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_writes_text_and_bytes_and_makes_the_folder(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a" / "b" / "text", "grün\n")
    write_atomic(tmp_path / "bytes", b"\x00\xff")
    assert (tmp_path / "a" / "b" / "text").read_bytes() == "grün\n".encode()
    assert (tmp_path / "bytes").read_bytes() == b"\x00\xff"
    assert names(tmp_path) == ["a", "bytes"]


def test_replaces_the_old(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", "old, and longer")
    write_atomic(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new"


def test_a_failed_write_leaves_the_old(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", "old")
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_the_name_appears_only_at_the_end(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("whole")
        assert temporary.parent == tmp_path
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a").read_text() == "whole"


def test_a_block_that_wrote_nothing_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a"):
        pass
    assert names(tmp_path) == []


def test_the_bytes_reach_the_disk_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, os.replace

    def record_fsync(descriptor: int) -> None:
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        fsync(descriptor)

    def record_rename(source: Path, target: Path) -> None:
        done.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_rename)
    write_atomic(tmp_path / "a", "x")
    assert done == ["file", "rename", "folder"]


KILLED = """
import os, sys, signal
from base.files import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    with open(temporary, "w") as file:
        file.write("half")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_in_the_middle_leaves_the_old(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": True})
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)])
    assert done.returncode == -signal.SIGKILL
    assert read_json(path) == {"old": True}
    left = [name for name in names(tmp_path) if name != "a.json"]
    assert all(name.startswith(".") and name.endswith(".tmp") for name in left)
    assert len(left) == 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(value=json_values)
def test_json_reads_back_equal(value: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert read_json(path) == value


def test_the_form_of_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": ["ü"]})
    assert (tmp_path / "a.json").read_text() == '{\n  "b": 1,\n  "a": [\n    "ü"\n  ]\n}\n'


def test_what_has_no_json_form_leaves_the_old(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert (read_json(tmp_path / "a.json"), names(tmp_path)) == (1, ["a.json"])


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not JSON"),
        (b'{"a": 1', "line 1"),
        (b'{"a":\n1,\n}', "line 3"),
        (b"\xff\xfe{", "not UTF-8"),
    ],
)
def test_broken_json_names_the_file(content: bytes, why: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=why) as caught:
        read_json(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_json_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.json: No such file"):
        read_json(tmp_path / "absent.json")
    with pytest.raises(UserError, match="Is a directory"):
        read_json(tmp_path)


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1])
def test_hashes_whole_files(size: int, tmp_path: Path) -> None:
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    (tmp_path / "a").write_bytes(data)
    assert sha256_file(tmp_path / "a") == sha256(data).hexdigest()


def test_free_space(tmp_path: Path) -> None:
    require_free_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(
        UserError, match=r"needs 1000000000000\.0 GB of disk, [\d.]+ [GM]B are free; f"
    ):
        require_free_space(tmp_path / "not" / "yet", 10**21)
    assert not (tmp_path / "not").exists()


def test_a_json_file_is_json_to_others(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": [1.5, None, "→"]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1.5, None, "→"]}
