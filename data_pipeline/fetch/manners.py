"""What hosts ask of those who fetch: robots.txt, opt-out tags and lists, a pace."""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager

from protego import Protego

_ROBOTS_SECONDS = 86_400.0  # how long a robots.txt is believed
_HOSTS = 10_000  # remembered at once
_LONGEST_DELAY = 30.0  # of those that robots.txt may ask for


def opts_out(headers: Iterable[str], tags: Iterable[str], agent: str) -> str | None:
    """The first of `tags` that X-Robots-Tag `headers` give to everybody or to `agent`.

    A value is `tag, tag` or `name: tag, tag`, which speaks to one robot alone.
    """
    wanted = {tag.lower() for tag in tags}
    name = agent_name(agent)
    for header in headers:
        ours = True
        for part in header.lower().split(","):
            speaker, colon, tag = part.rpartition(":")
            if colon and speaker.strip() != "unavailable_after":
                ours = speaker.strip() in ("", "*", name)
            if ours and tag.strip() in wanted:
                return tag.strip()
    return None


def agent_name(agent: str) -> str:
    """The product in front of a User-Agent: what robots.txt calls us."""
    return re.split(r"[/\s(]", agent, maxsplit=1)[0].lower()


class Domains:
    """A list of domains, their sub-domains included."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {_ascii(name) for name in names} - {""}

    def __contains__(self, host: str) -> bool:
        labels = _ascii(host).split(".")
        return any(".".join(labels[i:]) in self._names for i in range(len(labels)))


def _ascii(name: str) -> str:
    """A host's name as DNS has it, whichever alphabet it is written in."""
    name = name.strip().lower().strip(".")
    try:
        return name if name.isascii() else name.encode("idna").decode()
    except UnicodeError:
        return name


class Robots:
    """robots.txt of hosts, each read once a day (RFC 9309).

    `read` gives its text, or None where there is none; it raises what makes it unknown.
    """

    def __init__(self, agent: str, read: Callable[[str], Awaitable[str | None]]) -> None:
        self._name, self._read = agent_name(agent), read
        self._known: OrderedDict[str, tuple[float, asyncio.Future[Protego | None]]] = OrderedDict()

    async def allow(self, origin: str, url: str) -> bool:
        """Whether we may fetch `url` of `origin` (scheme://host:port)."""
        rules = await self._rules(origin)
        return rules is None or bool(rules.can_fetch(url, self._name))

    async def delay(self, origin: str) -> float:
        """Seconds between requests that the host asks for."""
        rules = await self._rules(origin)
        asked = rules.crawl_delay(self._name) if rules is not None else None
        return min(float(asked or 0.0), _LONGEST_DELAY)

    async def _rules(self, origin: str) -> Protego | None:
        now = asyncio.get_running_loop().time()
        since, known = self._known.get(origin, (now, None))
        if known is not None and now - since < _ROBOTS_SECONDS:
            self._known.move_to_end(origin)
            return await asyncio.shield(known)
        task = asyncio.ensure_future(self._ask(origin))
        self._known[origin] = now, task
        while len(self._known) > _HOSTS:
            self._known.popitem(last=False)

        def forget(done: asyncio.Future[Protego | None]) -> None:
            failed = done.cancelled() or done.exception() is not None
            if failed and self._known.get(origin, (now, None))[1] is done:
                del self._known[origin]  # unknown now is not unknown for ever

        task.add_done_callback(forget)
        return await asyncio.shield(task)

    async def _ask(self, origin: str) -> Protego | None:
        text = await self._read(f"{origin}/robots.txt")
        return None if text is None else Protego.parse(text)


class Pace:
    """At most so many requests to one host at a time, and a delay between their beginnings."""

    def __init__(self, per_host: int) -> None:
        self._per_host = per_host
        self._hosts: OrderedDict[str, _Host] = OrderedDict()

    @asynccontextmanager
    async def turn(self, host: str, delay: float) -> AsyncIterator[None]:
        """One request's turn; `delay` is in seconds."""
        state = self._hosts.setdefault(host, _Host(self._per_host))
        self._hosts.move_to_end(host)
        state.users += 1
        try:
            async with state.places:
                await state.wait(delay)
                yield
        finally:
            state.users -= 1
            self._forget()

    def _forget(self) -> None:
        while len(self._hosts) > _HOSTS:
            host = next((name for name, state in self._hosts.items() if not state.users), None)
            if host is None:
                return
            del self._hosts[host]


class _Host:
    def __init__(self, places: int) -> None:
        self.places = asyncio.Semaphore(places)
        self.users = 0
        self._turn = asyncio.Lock()
        self._next = 0.0

    async def wait(self, delay: float) -> None:
        """Until a request may begin; whoever gives up while waiting takes nobody's turn."""
        loop = asyncio.get_running_loop()
        async with self._turn:
            if (pause := self._next - loop.time()) > 0:
                await asyncio.sleep(pause)
            self._next = loop.time() + delay
