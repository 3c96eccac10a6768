"""Fetching from a real server on loopback: what comes, what is refused, what is tried again."""

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ThreadedResolver
from hypothesis import given
from hypothesis import strategies as st
from web import PICTURE, Server

from data_pipeline.fetch import FetchConfig, Fetching, addresses, client
from data_pipeline.fetch.addresses import is_public
from data_pipeline.fetch.manners import Domains, Pace, Robots, opts_out
from data_pipeline.fetch.rows import Backlog, in_order, with_pictures
from data_pipeline.row import Rejection, Row

CAP = 1 << 20


def fetch(url: str, **settings: Any) -> bytes:
    """The bytes of one address; what is not said is quick and allows loopback."""
    config = FetchConfig.model_validate(
        {"allow_private": True, "backoff_seconds": 0.01, "attempts": 3, **settings}
    )
    with Fetching(config, CAP) as fetching:
        return fetching.submit(url).result()


def reason(url: str, **settings: Any) -> str:
    with pytest.raises(Rejection) as caught:
        fetch(url, **settings)
    return caught.value.reason


def test_a_picture_and_who_asked_for_it(server: Server) -> None:
    assert fetch(server.url("picture"), user_agent="tester/1 (mail@example.org)") == PICTURE
    assert server.agents == {"tester/1 (mail@example.org)"}


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451, 501])
def test_what_is_final_is_asked_once(server: Server, status: int) -> None:
    assert reason(server.url(f"status/{status}")) == "http_error"
    assert server.seen[f"status/{status}"] == 1


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_asked_again(server: Server, status: int) -> None:
    assert fetch(server.url(f"again/{status}")) == PICTURE
    assert server.seen[f"again/{status}"] == 3
    assert reason(server.url(f"status/{status}"), attempts=2) == "http_passing"
    assert server.seen[f"status/{status}"] == 2


def test_a_body_that_is_not_packed_as_it_says_is_a_reason(server: Server) -> None:
    assert reason(server.url("gzip/none"), attempts=2) == "connection"
    assert server.seen["gzip/none"] == 2


@pytest.mark.parametrize("value", ["nan", "soon", "-5"])
def test_retry_after_that_says_nothing_is_no_reason_to_wait(server: Server, value: str) -> None:
    assert fetch(server.url(f"wait/{value}")) == PICTURE


@pytest.mark.parametrize("value", ["inf", "Fri, 31 Dec 9999 23:59:59 -2359"])
def test_retry_after_beyond_all_patience_is_a_reason(server: Server, value: str) -> None:
    settings = {"deadline_seconds": 1.0}
    try:
        assert fetch(server.url(f"wait/{value}"), **settings) == PICTURE
    except Rejection as why:
        assert why.reason == "timeout"  # noqa: PT017 - either end is right, an error is not


@pytest.mark.parametrize("value", ["1", "date"])
def test_retry_after_is_waited_for(server: Server, value: str) -> None:
    begun = time.monotonic()
    assert fetch(server.url(f"wait/{value}")) == PICTURE
    assert time.monotonic() - begun > (0.95 if value == "1" else 0.0)
    assert server.seen[f"wait/{value}"] == 2


def test_a_wait_beyond_the_deadline_is_not_waited_for(server: Server) -> None:
    begun = time.monotonic()
    assert reason(server.url("wait/3600"), deadline_seconds=0.5) == "timeout"
    assert time.monotonic() - begun < 20


def test_redirects_are_followed_so_far_and_no_further(server: Server) -> None:
    assert fetch(server.url("hops/3"), redirects=4) == PICTURE
    assert reason(server.url("hops/4"), redirects=4) == "too_many_redirects"


@pytest.mark.parametrize("place", ["file:///etc/passwd", "ftp://x/y", "//[", "http://u:p@x/"])
def test_redirects_lead_to_http_alone(server: Server, place: str) -> None:
    assert reason(server.url(f"to?place={place}")) == "bad_url"


@pytest.mark.parametrize(
    "url",
    ["", "picture.jpg", "file:///etc/passwd", "data:image/png;base64,AAAA", "http://", "http://[",
     "http://a b/", "http://x:99999/", "https://u:p@example.org/", "http://x/" + "y" * 9000],
)  # fmt: skip
def test_what_is_no_address(url: str) -> None:
    assert reason(url) == "bad_url"


PRIVATE = [
    "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "100.100.100.200", "0.0.0.0", "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1",
    "fe80::1%eth0", "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254",
    "64:ff9b::7f00:1", "2002:7f00:1::", "2002:a9fe:a9fe::", "2001:db8::1",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)
    shown = f"[{address}]" if ":" in address else address
    if "%" not in address:
        assert reason(f"http://{shown}/", allow_private=False, attempts=1) == "refused_address"


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_addresses_that_are(address: str) -> None:
    assert is_public(address)


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_judged_alike_however_it_is_wrapped(address: Any) -> None:
    assert is_public(f"::ffff:{address}") == is_public(str(address))


@pytest.mark.parametrize("host", ["localhost", "a.localhost", "2130706433", "0x7f.1", "127.1"])
def test_other_names_of_loopback(server: Server, host: str) -> None:
    url = f"http://{host}:{server.port}/picture"
    assert reason(url, allow_private=False, attempts=1) in ("refused_address", "bad_url")
    assert not server.seen


@pytest.mark.parametrize("place", ["127.0.0.2", "[::1]", "localhost", "home.test"])
def test_a_redirect_into_ones_own_network(
    server: Server, answers: dict[str, list[str]], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """127.0.0.1 stands for a public server, whose redirect is not followed home."""
    answers["home.test"] = ["127.0.0.2"]
    for module in (addresses, client):
        monkeypatch.setattr(module, "is_public", lambda address: address == "127.0.0.1")
    assert fetch(server.url("picture"), allow_private=False) == PICTURE
    url = server.url(f"to?place=http://{place}:{server.port}/picture")
    assert reason(url, allow_private=False) == "refused_address"
    assert server.seen["picture"] == 1


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What a name server says, in order; the last for ever."""
    said: dict[str, list[str]] = {}

    async def resolve(self: Any, host: str, port: int = 0, family: int = 0) -> list[Any]:
        if host not in said:
            raise OSError(f"{host}: unknown")
        address = said[host].pop(0) if len(said[host]) > 1 else said[host][0]
        return [{"hostname": host, "host": address, "port": port, "family": 2, "proto": 6,
                 "flags": 0}]  # fmt: skip

    monkeypatch.setattr(ThreadedResolver, "resolve", resolve)
    return said


def test_a_name_that_leads_home(server: Server, answers: dict[str, list[str]]) -> None:
    """Whatever the name server said before: what is connected to is what is looked at."""
    answers["rebind.test"] = ["127.0.0.1"]
    url = f"http://rebind.test:{server.port}/picture"
    assert reason(url, allow_private=False) == "refused_address"
    assert not server.seen
    assert fetch(url, allow_private=True) == PICTURE


def test_an_unknown_name_is_asked_for_again(answers: dict[str, list[str]]) -> None:
    assert reason("http://nowhere.test/") == "dns"


def test_nobody_listens() -> None:
    assert reason("http://127.0.0.1:9/", attempts=2) == "connection"


@pytest.mark.parametrize("path", ["endless", "gzip/bomb"])
def test_never_more_than_the_cap(server: Server, path: str) -> None:
    assert reason(server.url(path)) == "too_many_bytes"


def test_packed_bodies(server: Server) -> None:
    assert fetch(server.url("gzip/fine")) == PICTURE


def test_a_body_that_ends_early_is_not_taken_for_whole(server: Server) -> None:
    assert reason(server.url("short"), attempts=2) == "connection"
    assert server.seen["short"] == 2


def test_silence_and_drops_end_in_time(server: Server) -> None:
    begun = time.monotonic()
    assert reason(server.url("silent"), silence_seconds=0.3, attempts=2) == "timeout"
    assert reason(server.url("slow"), deadline_seconds=0.5) == "timeout"
    assert time.monotonic() - begun < 20


def test_robots_are_read_once_and_kept_to(server: Server) -> None:
    server.robots = "User-agent: tester\nDisallow: /private\n\nUser-agent: *\nDisallow: /\n"
    config = FetchConfig(allow_private=True, user_agent="Tester/2.0 (x)")
    with Fetching(config, CAP) as fetching:
        allowed = [fetching.submit(server.url(f"picture/{i}")) for i in range(20)]
        refused = [fetching.submit(server.url(f"private/{i}")) for i in range(20)]
        assert {future.result() for future in allowed} == {PICTURE}
        for future in refused:
            with pytest.raises(Rejection) as caught:
                future.result()
            assert caught.value.reason == "robots"
    assert server.seen["robots.txt"] == 1
    assert not any(path.startswith("private") for path in server.seen)
    assert reason(server.url("picture")) == "robots"  # another robot is meant by *
    assert fetch(server.url("picture"), robots=False) == PICTURE


@pytest.mark.parametrize(("answer", "allowed"), [(404, True), (403, True), (503, False)])
def test_robots_that_cannot_be_read(server: Server, answer: int, allowed: bool) -> None:
    """RFC 9309: no file, no rules; a server that fails may have rules."""
    server.robots = answer
    if allowed:
        assert fetch(server.url("picture")) == PICTURE
    else:
        assert reason(server.url("picture")) == "http_passing"
        assert server.seen["picture"] == 0


TAGS = ("noai", "noimageai", "noindex", "noimageindex")


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("noai", "noai"),
        ("NOINDEX, nofollow", "noindex"),
        ("nofollow", None),
        ("otherbot: noai", None),
        ("otherbot: noai, noindex", None),
        ("tester: noai", "noai"),
        ("otherbot: nofollow, tester: noimageai", "noimageai"),
        ("unavailable_after: 25 Jun 2030 15:00:00 PST", None),
        ("", None),
    ],
)
def test_opt_out_tags(server: Server, header: str, found: str | None) -> None:
    assert opts_out([header], TAGS, "tester/1 (x)") == found
    url = server.url("tag?tag=") + header.replace(" ", "%20")
    if found is None:
        assert fetch(url, user_agent="tester/1") == PICTURE
    else:
        assert reason(url, user_agent="tester/1") == "opted_out"


def test_opt_out_lists_of_domains(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "domains.txt"
    path.write_text("# those who asked\nexample.org\n127.0.0.1  # a test\n")
    assert reason(server.url("picture"), opt_out_domains=path) == "opted_out"
    assert not server.seen
    names = Domains(["example.org"])
    assert "a.b.Example.ORG." in names
    assert "notexample.org" not in names


def test_one_host_is_not_overrun(server: Server) -> None:
    config = FetchConfig(allow_private=True, per_host=3, concurrency=64)
    with Fetching(config, CAP) as fetching:
        for future in [fetching.submit(server.url(f"pause/{i}")) for i in range(30)]:
            assert future.result() == PICTURE
    assert server.most_at_once == 3


@pytest.mark.parametrize("how", ["config", "robots"])
def test_a_delay_between_requests(server: Server, how: str) -> None:
    if how == "robots":
        server.robots = "User-agent: *\nCrawl-delay: 0.1\n"
    delay = 0.1 if how == "config" else 0.0
    config = FetchConfig(allow_private=True, host_delay_seconds=delay)
    begun = time.monotonic()
    with Fetching(config, CAP) as fetching:
        for future in [fetching.submit(server.url(f"picture/{i}")) for i in range(6)]:
            future.result()
    assert time.monotonic() - begun > 0.5


def test_what_is_under_way_is_given_up_at_the_end(server: Server) -> None:
    begun = time.monotonic()
    with Fetching(FetchConfig(allow_private=True), CAP) as fetching:
        futures = [fetching.submit(server.url("silent")) for _ in range(20)]
        time.sleep(0.2)
    assert time.monotonic() - begun < 10
    assert all(future.cancelled() or future.done() for future in futures)
    assert not [t for t in threading.enumerate() if t.name == "fetch"]


def test_large_pictures_are_held_a_few_at_a_time(server: Server) -> None:
    """The others wait until those are taken; small ones pass."""
    server.files = {f"large/{i}": bytes(2 << 20) for i in range(40)}
    config = FetchConfig(allow_private=True, per_host=64, concurrency=64)
    with Fetching(config, 4 << 20) as fetching:
        waiting = [fetching.submit(server.url(name)) for name in server.files]
        assert fetching.submit(server.url("picture")).result() == PICTURE
        end = time.monotonic() + 20
        while sum(future.done() for future in waiting) < 16 and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(0.5)
        assert sum(future.done() for future in waiting) == 16
        while waiting:
            for future in [future for future in waiting if future.done()]:
                fetching.taken(future.result())
                waiting.remove(future)
            assert time.monotonic() < end
            time.sleep(0.01)


def test_a_large_picture_that_fails_gives_its_place_back(server: Server) -> None:
    config = FetchConfig(allow_private=True, per_host=64, concurrency=64, attempts=1)
    server.files = {"large": bytes(2 << 20)}
    with Fetching(config, 3 << 20) as fetching:
        for future in [fetching.submit(server.url("endless")) for _ in range(40)]:
            with pytest.raises(Rejection, match="too_many_bytes"):
                future.result(timeout=60)
        assert len(fetching.submit(server.url("large")).result(timeout=20)) == 2 << 20


def test_robots_that_could_not_be_had_are_asked_for_again() -> None:
    asked: list[str] = []

    async def read(url: str) -> str | None:
        asked.append(url)
        await asyncio.sleep(0.05)
        if len(asked) == 1:
            raise Rejection("timeout", "not there")
        return None

    async def run() -> bool:
        robots = Robots("tester", read)
        first = asyncio.ensure_future(robots.allow("http://host", "http://host/a"))
        await asyncio.sleep(0)
        first.cancel()  # its deadline; nobody waits for the answer any more
        await asyncio.sleep(0.1)
        return await robots.allow("http://host", "http://host/b")

    assert asyncio.run(run())
    assert len(asked) == 2


def test_those_who_give_up_waiting_take_nobodys_turn() -> None:
    async def run() -> float:
        pace = Pace(8)

        async def take() -> None:
            async with pace.turn("host", 0.2):
                pass

        await take()
        impatient = [asyncio.ensure_future(take()) for _ in range(5)]
        await asyncio.sleep(0.01)
        for task in impatient:
            task.cancel()
        begun = time.monotonic()
        await take()
        return time.monotonic() - begun

    assert asyncio.run(run()) < 0.6  # five turns would be a second


@given(st.permutations(range(12)), st.integers(0, 3))
def test_what_comes_too_early_waits_and_is_counted(order: list[int], first: int) -> None:
    backlog = Backlog()
    numbered = ((first + number, first + number) for number in order)
    found = in_order(numbered, first, backlog, lambda item: item + 1)
    assert list(found) == list(range(first, first + 12))
    assert backlog.bytes == 0


def test_nothing_is_begun_while_too_much_waits(server: Server) -> None:
    """The first address is slow; what comes meanwhile fills the backlog."""
    server.pause = lambda name: 1.0 if name == "p/0" else 0.0
    rows = [Row(str(i), None, ("a",), server.url(f"p/{i}")) for i in range(60)]
    config = FetchConfig(allow_private=True, concurrency=2, per_host=4)
    backlog = Backlog(most=5 * len(PICTURE))
    most = 0
    taken = with_pictures(iter(enumerate(rows)), config, CAP, backlog)

    def watched() -> Iterator[tuple[int, Row]]:
        nonlocal most
        for position, row in taken:
            yield position, row
            most = max(most, backlog.bytes)

    size = len(PICTURE)
    pairs = ((position, row) for position, row in watched())
    got = [row.source_key for row in in_order(pairs, 0, backlog, lambda _: size)]
    assert got == [str(i) for i in range(60)]
    assert 4 * size <= most <= 8 * size
