"""Leases: one owner at a time, across processes; dead and silent owners give way."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import base.lease
import base.owner
from base.errors import UserError
from base.lease import NAME, Lease, require_held

HOLDER = """
import sys, time
from base.lease import Lease
with Lease(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(folder: Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds `folder`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def owner(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / NAME).read_text())
    return content


def rewrite(folder: Path, **changes: Any) -> None:
    (folder / NAME).write_text(json.dumps({**owner(folder), **changes}))


@pytest.fixture(autouse=True)
def _outside_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)


def test_names_its_owner_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    before = time.time()
    with Lease(folder):
        held = owner(folder)
    assert (held["host"], held["pid"], held["job"]) == (socket.gethostname(), os.getpid(), None)
    assert before <= held["start"] == held["renewed"] <= time.time()
    assert list(folder.iterdir()) == []


def test_a_second_process_is_refused_with_the_first_one_s_name(tmp_path: Path) -> None:
    with (
        holder(tmp_path, SLURM_JOB_ID="77") as process,
        pytest.raises(UserError) as caught,
        Lease(tmp_path),
    ):
        pass
    expected = f"in use by host {socket.gethostname()}, pid {process.pid}, Slurm job 77"
    assert expected in str(caught.value)


def test_the_refused_one_leaves_the_owner_alone(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        before = (tmp_path / NAME).read_bytes()
        with pytest.raises(UserError), Lease(tmp_path):
            pass
        assert (tmp_path / NAME).read_bytes() == before
        process.communicate(input="")
    with Lease(tmp_path):
        assert owner(tmp_path)["pid"] == os.getpid()


def test_a_killed_owner_gives_way_at_once(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert owner(tmp_path)["pid"] == process.pid
    with Lease(tmp_path):
        assert owner(tmp_path)["pid"] == os.getpid()


def test_another_process_with_the_dead_owner_s_pid_holds_nothing(tmp_path: Path) -> None:
    with holder(tmp_path):
        rewrite(tmp_path, process_start="1")
        with Lease(tmp_path):
            assert owner(tmp_path)["pid"] == os.getpid()


def test_a_pid_of_another_host_or_container_says_nothing(tmp_path: Path) -> None:
    for change in ({"host": "elsewhere"}, {"namespace": "pid:[1]"}):
        with holder(tmp_path) as process:
            process.kill()
            process.wait()
        rewrite(tmp_path, **change)
        with pytest.raises(UserError, match=f"pid {process.pid}"), Lease(tmp_path):
            pass
        (tmp_path / NAME).unlink()


def test_a_silent_owner_gives_way_after_five_minutes(tmp_path: Path) -> None:
    with holder(tmp_path):
        rewrite(tmp_path, host="elsewhere", renewed=time.time() - 290)
        with pytest.raises(UserError), Lease(tmp_path):
            pass
        rewrite(tmp_path, renewed=time.time() - 301)
        with Lease(tmp_path):
            assert owner(tmp_path)["host"] == socket.gethostname()


def test_the_same_slurm_job_takes_over_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with holder(tmp_path, SLURM_JOB_ID="77"):
        rewrite(tmp_path, host="elsewhere")
        monkeypatch.setenv("SLURM_JOB_ID", "78")
        with pytest.raises(UserError, match="Slurm job 77"), Lease(tmp_path):
            pass
        monkeypatch.setenv("SLURM_JOB_ID", "77")
        with Lease(tmp_path):
            assert owner(tmp_path)["job"] == "77"


def test_of_an_array_the_element_has_the_folder_as_the_launcher_knows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last element's SLURM_JOB_ID is that of the array: it must not be taken for the others."""
    element = {"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_ID": "80"}
    with holder(tmp_path, **element):
        rewrite(tmp_path, host="elsewhere")
        for name, value in {**element, "SLURM_ARRAY_TASK_ID": "4", "SLURM_JOB_ID": "77"}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match="Slurm job 77_3"), Lease(tmp_path):
            pass
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
        with Lease(tmp_path):
            assert owner(tmp_path)["job"] == "77_3"


def test_an_owner_that_lost_the_folder_leaves_the_new_one_alone(tmp_path: Path) -> None:
    with Lease(tmp_path):
        rewrite(tmp_path, token="another's")
    assert owner(tmp_path)["token"] == "another's"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": "a"}', "\0\0"])
def test_a_broken_file_names_no_owner(content: str, tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(content)
    with Lease(tmp_path):
        assert owner(tmp_path)["pid"] == os.getpid()


def test_the_same_process_may_enter_again(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with Lease(tmp_path / "run"):
        first = owner(tmp_path / "run")
        with Lease(tmp_path / "link"):
            assert owner(tmp_path / "run") == first
        assert owner(tmp_path / "run") == first
    assert not (tmp_path / "run" / NAME).exists()


def test_released_when_the_work_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Lease(tmp_path):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_renewed_while_it_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base.lease, "RENEW_SECONDS", 0.01)
    with Lease(tmp_path):
        first = owner(tmp_path)
        deadline = time.monotonic() + 30
        while (latest := _settled(tmp_path))["renewed"] == first["renewed"]:
            assert time.monotonic() < deadline
    assert latest["renewed"] > first["renewed"]
    assert latest["start"] == first["start"]
    assert all(thread.name != "lease" for thread in threading.enumerate())


def _settled(folder: Path) -> dict[str, Any]:
    """The owner, read between two renewals."""
    while True:
        try:
            return owner(folder)
        except json.JSONDecodeError:
            time.sleep(0.001)


def _hold_in_child(folder: Path, answers: "multiprocessing.SimpleQueue[str]") -> None:
    try:
        with Lease(folder):
            answers.put("held")
    except UserError as error:
        answers.put(str(error))


def test_a_forked_child_is_a_second_process(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    with Lease(tmp_path):
        child = context.Process(target=_hold_in_child, args=(tmp_path, answers))
        child.start()
        assert f"pid {os.getpid()}" in answers.get()
        child.join()
        assert owner(tmp_path)["pid"] == os.getpid()


RACER = """
import os, sys
from base.errors import UserError
from base.lease import Lease
folder = sys.argv[1]
sys.stdin.readline()
won = 0
for _ in range(int(sys.argv[2])):
    try:
        with Lease(folder):
            os.close(os.open(folder + "/inside", os.O_CREAT | os.O_EXCL))  # fails if two are in
            os.unlink(folder + "/inside")
            won += 1
    except UserError:
        pass
print(won)
"""


def test_never_two_at_once(tmp_path: Path) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(tmp_path), "200"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    results = []
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    for racer in racers:
        output, _ = racer.communicate()
        assert racer.returncode == 0
        results.append(int(output))
    assert sum(results) > 0
    assert list(tmp_path.iterdir()) == []


def test_dead_owner_is_taken_over_by_one_of_many(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.kill()
        process.wait()
    takers = [
        subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(3)
    ]
    # A line is "held" from the winner and the end of the stream from the refused ones.
    lines = []
    for taker in takers:
        assert taker.stdout is not None
        lines.append(taker.stdout.readline())
    for taker in takers:
        taker.communicate(input="")
    assert sorted(lines) == ["", "", "held\n"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"), Lease(tmp_path / "file"):
        pass


def test_a_full_disk_leaves_no_lease(
    small_disk: Path, fill_disk: Callable[[Path], Path], tmp_path: Path
) -> None:
    folder = small_disk / "run"
    folder.mkdir()
    filler = fill_disk(small_disk)
    with filler.open("ab") as file:
        file.write(bytes(4096))
    with pytest.raises(OSError, match="No space left"), Lease(folder):
        pytest.fail("held without a lease")
    assert list(folder.iterdir()) == []
    filler.unlink()
    with Lease(folder):
        assert [path.name for path in folder.iterdir()] == [NAME]


@pytest.fixture
def _stopped_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look finds the lease not renewed for long."""
    monkeypatch.setattr(base.lease, "_LATE_SECONDS", -1.0)


@pytest.mark.usefixtures("_stopped_long")
def test_an_owner_that_lost_the_folder_while_it_was_stopped_ends(tmp_path: Path) -> None:
    with Lease(tmp_path):
        require_held(tmp_path)
        rewrite(tmp_path, token="another's")
        with pytest.raises(UserError, match=f"taken over .* pid {os.getpid()}, was stopped"):
            require_held(tmp_path)
    require_held(tmp_path)  # nobody's here


@pytest.mark.usefixtures("_stopped_long")
def test_a_successor_that_came_and_went_counts_as_well(tmp_path: Path) -> None:
    with Lease(tmp_path):
        (tmp_path / NAME).unlink()
        with pytest.raises(UserError, match="taken over"):
            require_held(tmp_path / ".")


def test_a_process_that_was_stopped_notices_before_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped by SIGSTOP; another takes the folder after its patience, and the first one wakes."""
    code = HOLDER.replace("import Lease", "import Lease, require_held").replace(
        "sys.stdin.read()", "sys.stdin.read(); require_held(sys.argv[1]); print('wrote')"
    )
    short = "import base.lease; base.lease._LATE_SECONDS = 0.5"
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"{short}\n{code}",
            tmp_path,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.6)
        monkeypatch.setattr(base.owner, "STALE_SECONDS", 0.5)
        with Lease(tmp_path):
            process.send_signal(signal.SIGCONT)
            out, err = process.communicate(input="", timeout=30)
            assert (out, process.returncode) == ("", 1)
            assert err.strip().splitlines()[-1].endswith("was stopped; it writes nothing more")
            assert owner(tmp_path)["pid"] == os.getpid()
    finally:
        process.kill()
        process.communicate()
