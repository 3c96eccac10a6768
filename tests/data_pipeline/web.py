"""A web server on loopback that misbehaves on request, for tests of fetching."""

from __future__ import annotations

import asyncio
import gzip
import threading
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

from aiohttp import web

PICTURE = bytes(range(256)) * 40


class Server:
    """An HTTP server in a thread; counts requests by path."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.agents: set[str] = set()
        self.robots: str | int = 404
        self.files: dict[str, bytes] = {}
        self.pause: Callable[[str], float] = lambda name: 0.0  # seconds before each answer
        # Whether the answer of a name's so-manieth request is still held back.
        self.holds: Callable[[str, int], bool] = lambda name, times: False
        self.most_at_once = self._now = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.port: int = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()

    async def _start(self) -> int:
        app = web.Application()
        app.router.add_get("/{name:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port: int = self._runner.addresses[0][1]
        return port

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}/{path}"

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        self.seen[name] += 1
        self.agents.add(request.headers["User-Agent"])
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            return await self._respond(request, name, self.seen[name])
        finally:
            self._now -= 1

    async def _respond(self, request: web.Request, name: str, times: int) -> web.StreamResponse:
        kind, _, rest = name.partition("/")
        if name == "robots.txt":
            known = isinstance(self.robots, str)
            return web.Response(text=self.robots) if known else web.Response(status=self.robots)
        await asyncio.sleep(self.pause(name))
        while self.holds(name, times):
            await asyncio.sleep(0.05)
        if name in self.files:
            return web.Response(body=self.files[name])
        if kind in STREAMS:
            return await stream(request, kind)
        if kind in ("silent", "pause"):
            await asyncio.sleep(30 if kind == "silent" else 0.05)
        return plain(request, kind, rest, times)


STREAMS = ("slow", "short", "endless")


async def stream(request: web.Request, kind: str) -> web.StreamResponse:
    """A body that does not come as it should."""
    headers = {"Content-Length": "1000"} if kind == "short" else {}
    answer = web.StreamResponse(headers=headers)
    await answer.prepare(request)
    if kind == "short":
        await answer.write(b"x" * 10)
        assert request.transport is not None
        request.transport.close()
        return answer
    while True:
        await answer.write(b"x" if kind == "slow" else bytes(1 << 16))
        await asyncio.sleep(0.1 if kind == "slow" else 0)


def plain(request: web.Request, kind: str, rest: str, times: int) -> web.Response:
    """An answer in one piece; the picture where nothing else is asked for."""
    if kind == "status" or (kind == "again" and times < 3):
        return web.Response(status=int(rest.partition("/")[0]))
    if kind == "wait" and times == 1:
        later = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=1))
        return web.Response(status=429, headers={"Retry-After": later if rest == "date" else rest})
    if kind == "hops":
        place = f"/hops/{int(rest) - 1}" if int(rest) else "/picture"
        return web.Response(status=302, headers={"Location": place})
    if kind == "to":
        return web.Response(status=301, headers={"Location": request.query["place"]})
    if kind == "tag":
        return web.Response(body=PICTURE, headers={"X-Robots-Tag": request.query["tag"]})
    if kind == "gzip":
        body = gzip.compress(bytes(64 << 20) if rest == "bomb" else PICTURE)
        body = PICTURE if rest == "none" else body
        return web.Response(body=body, headers={"Content-Encoding": "gzip"})
    return web.Response(body=PICTURE)
