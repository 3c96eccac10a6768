"""Whatever is killed at whatever moment, the next run ends with the bytes of one never killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from ray.cluster_utils import Cluster

from data_pipeline.scenes import write_scenes
from data_pipeline.verify import verify

pytestmark = pytest.mark.slow
ROWS, PER_SHARD = 600, 20
CLIP = "random:4"
NODE = {"object_store_memory": 100 << 20}
Tree = Callable[[Path], dict[str, str]]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "scenes"
    write_scenes(folder, ROWS, 5, "webdataset", "train", 256, workers=1)
    return folder


def command(corpus: Path, out: Path, clip: str, *more: str) -> list[str]:
    program = [sys.executable, "-m", "data_pipeline", "prepare", str(corpus), "--out", str(out)]
    return [*program, "--set", f"samples_per_shard={PER_SHARD}", "--clip", clip, "--json", *more]


def finish(corpus: Path, out: Path, clip: str, *more: str) -> Path:
    line = command(corpus, out, clip, *more)
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kept"] == ROWS
    return out


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The DATASET of a run that nothing happened to, by CLIP."""
    folder = tmp_path_factory.mktemp("undisturbed")
    none = finish(corpus, folder / "none", "none")
    with_clip = Path(shutil.copytree(none, folder / "clip"))
    return {"none": none, CLIP: finish(corpus, with_clip, CLIP)}


@contextmanager
def running(corpus: Path, out: Path, clip: str, *more: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command(corpus, out, clip, *more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Until the condition holds; fails when the process ends before."""
    deadline = time.monotonic() + 400
    while not condition():
        if process.poll() is not None:
            pytest.fail(f"ended too early: {process.communicate()[1]}")
        if time.monotonic() > deadline:
            pytest.fail("it does not get there")
        time.sleep(0.005)


def commits(out: Path, stage: str) -> int:
    texts = [path.read_text() for path in (out / "commits").glob("?????.json")]
    return sum(json.loads(text)["stage"] == stage for text in texts)


def workers(driver: int, title: bytes) -> list[int]:
    """Ray workers of the driver's own cluster whose title begins with `title`."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            titled = folder.name.isdecimal() and (folder / "cmdline").read_bytes().startswith(title)
        except OSError:
            continue
        if titled and driver in ancestors(int(folder.name)):
            found.append(int(folder.name))
    return found


def ancestors(pid: int) -> Iterator[int]:
    while pid > 1:
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return
        yield pid


@pytest.mark.parametrize(("stage", "count", "clip"), [("pixels", 3, "none"), ("embedded", 2, CLIP)])
def test_a_killed_driver_leaves_nothing_wrong(
    corpus: Path,
    undisturbed: dict[str, Path],
    tmp_path: Path,
    tree: Tree,
    stage: str,
    count: int,
    clip: str,
) -> None:
    out = tmp_path / "dataset"
    with running(corpus, out, clip) as process:
        wait_until(lambda: commits(out, stage) >= count, process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not (out / "dataset.json").exists()
    before = {p.name: p.stat().st_mtime_ns for p in (out / "shards").glob("*.tar")}
    finish(corpus, out, clip)
    assert tree(out) == tree(undisturbed[clip])
    assert not (out / ".work").exists()
    after = {p.name: p.stat().st_mtime_ns for p in (out / "shards").glob("*.tar")}
    kept = [name for name in before if after[name] == before[name]]
    assert len(kept) >= len(before) - 1  # all but one that was renamed and not yet committed
    assert verify(out).problems == ()


def test_killed_workers_are_replaced(
    corpus: Path, undisturbed: dict[str, Path], tmp_path: Path, tree: Tree
) -> None:
    out = tmp_path / "dataset"
    with running(corpus, out, CLIP) as process:
        for title in (b"ray::_shard_task", b"ray::ClipActor"):
            wait_until(lambda title=title: bool(workers(process.pid, title)), process)
            for worker in workers(process.pid, title):
                os.kill(worker, signal.SIGKILL)
        stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert json.loads(stdout)["kept"] == ROWS
    assert tree(out) == tree(undisturbed[CLIP])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_it_stops_when_asked_and_goes_on(
    corpus: Path,
    undisturbed: dict[str, Path],
    tmp_path: Path,
    tree: Tree,
    number: signal.Signals,
    code: int,
) -> None:
    out = tmp_path / "dataset"
    with running(corpus, out, "none") as process:
        wait_until(lambda: commits(out, "pixels") >= 2, process)
        os.kill(process.pid, number)
        stderr = process.communicate(timeout=120)[1]
    assert process.returncode == code, stderr
    assert "Traceback" not in stderr
    assert "run the same command again" in stderr
    assert not (out / ".work").exists()
    assert not list(Path("/tmp").glob(f"ucray-{process.pid}-*"))
    finish(corpus, out, "none")
    assert tree(out) == tree(undisturbed["none"])


def test_a_second_process_is_refused(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "dataset"
    with running(corpus, out, "none") as process:
        wait_until(lambda: commits(out, "pixels") >= 1, process)
        os.kill(process.pid, signal.SIGSTOP)  # so that it cannot finish before the second begins
        second = subprocess.run(
            command(corpus, out, "none"), capture_output=True, text=True, check=False
        )
        os.kill(process.pid, signal.SIGCONT)
    assert second.returncode == 2
    assert f"pid {process.pid}" in second.stderr
    assert second.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """A Ray of three nodes on this machine, the first without CPUs for work."""
    cluster = Cluster(True, head_node_args={"num_cpus": 0, **NODE, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1, **NODE)
    yield cluster
    cluster.shutdown()


def test_a_killed_node_costs_nothing(
    corpus: Path, undisturbed: dict[str, Path], tmp_path: Path, tree: Tree, nodes: Cluster
) -> None:
    out = tmp_path / "dataset"
    with running(corpus, out, CLIP, "--ray-address", nodes.address) as process:
        wait_until(lambda: commits(out, "embedded") >= 2, process)
        nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)
        stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert json.loads(stdout)["kept"] == ROWS
    assert tree(out) == tree(undisturbed[CLIP])


def test_a_killed_driver_of_a_standing_cluster_leaves_nothing_wrong(
    corpus: Path, undisturbed: dict[str, Path], tmp_path: Path, tree: Tree, nodes: Cluster
) -> None:
    out = tmp_path / "dataset"
    address = ("--ray-address", nodes.address)
    with running(corpus, out, CLIP, *address) as process:
        wait_until(lambda: commits(out, "embedded") >= 2, process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    finish(corpus, out, CLIP, *address)  # while the first one's tasks may not have noticed
    assert tree(out) == tree(undisturbed[CLIP])


def memory_used() -> float:
    """The share of the machine's memory that is in use."""
    memory = psutil.virtual_memory()
    return 1 - memory.available / memory.total


@pytest.mark.alone
def test_workers_killed_for_memory_are_replaced(
    corpus: Path, undisturbed: dict[str, Path], tmp_path: Path, tree: Tree
) -> None:
    """Ray's own monitor kills them while another process takes what memory it is allowed."""
    spare, total = 4 << 30, psutil.virtual_memory().total
    if memory_used() * total + 2 * spare > total:
        pytest.skip(f"less than {2 * spare >> 30} GiB of memory are free")
    allowed = memory_used() + spare / total
    config = {"memory_usage_threshold": allowed, "memory_monitor_refresh_ms": 100}
    head = {"num_cpus": 2, **NODE, "include_dashboard": False, "_system_config": config}
    cluster = Cluster(True, head_node_args=head)
    logs = Path(cluster.head_node.get_logs_dir_path())
    out = tmp_path / "dataset"
    hungry = f"import time; held = b'x' * {int(1.3 * spare)}; time.sleep(60)"
    try:
        with running(corpus, out, CLIP, "--ray-address", cluster.address) as process:
            wait_until(lambda: commits(out, "embedded") >= 2, process)
            os.kill(process.pid, signal.SIGSTOP)  # a quick machine would be done before
            eater = subprocess.Popen([sys.executable, "-c", hungry])
            try:
                wait_until(lambda: killed_for_memory(logs) >= 2, process)
            finally:
                eater.kill()
                eater.wait()
                os.kill(process.pid, signal.SIGCONT)
            stdout, stderr = process.communicate(timeout=300)
    finally:
        cluster.shutdown()
    assert process.returncode == 0, stderr
    assert json.loads(stdout)["kept"] == ROWS
    assert tree(out) == tree(undisturbed[CLIP])


def killed_for_memory(logs: Path) -> int:
    """Workers that the node's monitor says it killed."""
    texts = (path.read_text(errors="replace") for path in logs.glob("raylet*"))
    return sum(text.count("kill details: Memory on the node") for text in texts)
