"""One client serves all tasks of a process, and its end is the end of its thread and sockets."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from web import PICTURE, Server

from base.errors import UserError
from data_pipeline.fetch import FetchConfig, Fetching, client, kept, manners
from data_pipeline.fetch.kept import kept_fetching
from data_pipeline.fetch.lists import read_domains, read_hashes, settled
from data_pipeline.fetch.manners import Domains
from data_pipeline.fetch.rows import Backlog, with_pictures
from data_pipeline.row import Row

CAP = 4 << 20


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    kept.close()
    yield
    kept.close()
    assert threads() == 0


def threads() -> int:
    return sum(thread.name == "fetch" for thread in threading.enumerate())


def config(**settings: Any) -> FetchConfig:
    return FetchConfig(allow_private=True, backoff_seconds=0.01, **settings)


def rows(server: Server, *names: str) -> Iterator[tuple[int, Row]]:
    yield from enumerate(Row(name, None, url=server.url(name)) for name in names)


def test_tasks_share_connections_and_what_is_known_of_hosts(server: Server) -> None:
    for _ in range(3):
        found = list(with_pictures(rows(server, "picture"), config(), CAP, Backlog()))
        assert [row.image for _, row in found] == [PICTURE]
        assert threads() == 1
    assert server.seen["picture"] == 3
    assert server.seen["robots.txt"] == 1
    with kept_fetching(config(), CAP) as fetching:
        connector = fetching._client._session.connector
        assert connector is not None
        assert len(connector._conns) == 1  # type: ignore[attr-defined]


def test_another_config_or_list_is_another_client(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_text("example.org\n")
    listed = config(opt_out_domains=path)
    with (
        kept_fetching(config(), CAP) as first,
        kept_fetching(config(), CAP) as again,
    ):
        assert first is again
        with kept_fetching(config(), CAP + 1) as other:
            assert other is not first
            assert first.submit(server.url("picture")).result() == PICTURE  # still in use
    assert threads() == 1
    with kept_fetching(listed, CAP) as before:
        assert before.submit(server.url("picture")).result() == PICTURE
    path.write_text("example.org\n127.0.0.1\n")
    with kept_fetching(listed, CAP) as after:
        assert after is not before
        with pytest.raises(Exception, match="opt-out list of domains"):
            after.submit(server.url("picture")).result()
    assert threads() == 1


def test_a_task_that_ends_early_leaves_nothing_under_way(server: Server) -> None:
    server.files = {f"large/{i}": bytes(client.LARGE + 1) for i in range(6)}
    for _ in range(client._LARGE_AT_ONCE):
        coming = with_pictures(rows(server, *server.files, "silent"), config(), CAP, Backlog())
        next(coming)
        coming.close()
    with kept_fetching(config(), CAP) as fetching:

        async def others() -> int:
            while len(asyncio.all_tasks()) > 1:  # what is cancelled ends at the loop's next turns
                await asyncio.sleep(0.01)
            return fetching._client.large._value

        free = asyncio.run_coroutine_threadsafe(others(), fetching._loop).result(30)
    assert free == client._LARGE_AT_ONCE


def test_a_worker_s_end_closes_what_it_kept(server: Server) -> None:
    code = (
        "import sys, threading\n"
        "from data_pipeline.fetch import FetchConfig\n"
        "from data_pipeline.fetch.rows import Backlog, with_pictures\n"
        "from data_pipeline.row import Row\n"
        "rows = iter([(0, Row('a', None, url=sys.argv[1]))])\n"
        "found = list(with_pictures(rows, FetchConfig(allow_private=True), 1 << 20, Backlog()))\n"
        "print(len(found[0][1].image), threading.active_count())\n"
    )
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", code, server.url("picture")]
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=paths)
    assert done.stdout.split()[0] == str(len(PICTURE))
    assert done.returncode == 0
    assert done.stderr == ""  # nothing was left open: development mode would tell


def test_a_robots_txt_is_read_again_after_a_day(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Fetching(config(), CAP) as fetching:
        for day, expected in ((86_400.0, 1), (0.0, 3)):
            monkeypatch.setattr(manners, "_ROBOTS_SECONDS", day)
            assert fetching.submit(server.url("picture")).result() == PICTURE
            assert server.seen["robots.txt"] == expected


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (read_domains, "example.org\nhttp://example.org/\n", r"line 2: got 'http://example\.org/'"),
        (read_domains, "example.org, other.org", "line 1: .* expected a domain"),
        (read_hashes, "# none\n\n12ab\n", "line 3: got '12ab', expected md5 or sha256"),
        (read_hashes, "\udcff", "not UTF-8 text"),
    ],
)
def test_lists_with_a_wrong_line_are_refused(
    read: Any, text: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "list"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=message) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_lists_are_looked_at_before_anything_else_and_lie_where_they_lay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list").write_text(f"\ufeff{'A' * 64}  # asked by mail\n")
    found = settled(config(opt_out_hashes=Path("list")))
    assert found.opt_out_hashes == tmp_path / "list"
    assert read_hashes(found.opt_out_hashes) == {"a" * 64}
    with pytest.raises(UserError, match="gone: No such file"):
        settled(config(opt_out_domains=Path("gone")))


def test_domains_are_known_in_either_alphabet() -> None:
    names = Domains(["bücher.example", "xn--mnchen-3ya.example"])
    for host in ("bücher.example", "www.xn--bcher-kva.example", "münchen.example"):
        assert host in names
    assert "example" not in names
