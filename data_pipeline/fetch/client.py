"""One picture from the web: redirects, attempts, limits, and a reason when there is none."""

from __future__ import annotations

import asyncio
import random
import re
import ssl
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from types import TracebackType

import aiohttp
from yarl import URL

from data_pipeline.fetch.addresses import RefusedAddress, is_public, public_socket
from data_pipeline.fetch.config import FetchConfig
from data_pipeline.fetch.lists import read_domains
from data_pipeline.fetch.manners import Domains, Pace, Robots, opts_out
from data_pipeline.row import Rejection

_REDIRECTS = {301, 302, 303, 307, 308}
_PASSING = {408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524}
_HOST = re.compile(r"[A-Za-z0-9._:%-]+")  # after IDNA
_CHUNK = 1 << 16
_ROBOTS_BYTES = 1 << 19
LARGE = 1 << 20  # bodies beyond this share few places, so that memory stays bounded
_LARGE_AT_ONCE = 16
_DNS_SECONDS = 300
_LONGEST_URL = 8192


class _Passing(Exception):
    """A fault that may pass: the reason it ends as, and what the host says to wait (seconds)."""

    def __init__(self, reason: str, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.rejection, self.wait = Rejection(reason, message), wait


class Client:
    """Fetches addresses; an asynchronous context manager, for one event loop."""

    def __init__(self, config: FetchConfig, max_bytes: int) -> None:
        self._config, self._max_bytes = config, min(max_bytes, config.max_bytes)
        self.large = asyncio.Semaphore(_LARGE_AT_ONCE)
        self._banned = Domains(read_domains(config.opt_out_domains))
        self._robots = Robots(config.user_agent, self._robots_text)
        self._pace = Pace(config.per_host)

    async def __aenter__(self) -> Client:
        config = self._config
        connector = aiohttp.TCPConnector(
            limit=config.concurrency,
            ttl_dns_cache=_DNS_SECONDS,
            socket_factory=None if config.allow_private else public_socket,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,  # a bomb would unfold before it is counted
            headers={
                "User-Agent": config.user_agent,
                "Accept": "image/*,*/*;q=0.5",
                "Accept-Encoding": "identity",
            },
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=config.connect_seconds, sock_read=config.silence_seconds
            ),
            trust_env=False,  # a proxy would connect to what we must not
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def fetch(self, url: str) -> bytes:
        """The bytes behind an address; whoever takes more than `LARGE` of them releases `large`.

        Raises:
            Rejection: there are none to have, or not for us; `retryable` reasons may pass.
        """
        try:
            return await asyncio.wait_for(self._attempts(url), self._config.deadline_seconds)
        except asyncio.TimeoutError:
            seconds = self._config.deadline_seconds
            raise Rejection("timeout", f"not there after {seconds:g} s") from None
        except (Rejection, asyncio.CancelledError):
            raise
        except Exception as error:  # what a server sends must never end the run
            told = f"{type(error).__name__}: {error}"
            raise Rejection("connection", f"the answer cannot be used ({told[:200]})") from error

    async def _attempts(self, url: str) -> bytes:
        for attempt in range(1, self._config.attempts + 1):
            try:
                return await self._hops(url)
            except _Passing as fault:
                if attempt == self._config.attempts:
                    raise fault.rejection from None
                pause = self._config.backoff_seconds * 2 ** (attempt - 1)
                pause *= random.uniform(0.75, 1.25)  # so that many do not come back at once
                await asyncio.sleep(max(pause, fault.wait or 0.0))
        raise AssertionError("there is at least one attempt")

    async def _hops(self, given: str) -> bytes:
        url = _parsed(given)
        for _ in range(self._config.redirects + 1):
            found = await self._hop(url)
            if isinstance(found, bytes):
                return found
            url = _parsed(found, url)
        raise Rejection("too_many_redirects", f"more than {self._config.redirects} redirects")

    async def _hop(self, url: URL) -> bytes | str:
        """The body, or where the address leads on to."""
        host, origin = str(url.host), str(url.origin())
        self._require_allowed(host)
        delay = self._config.host_delay_seconds
        if self._config.robots:
            if not await self._robots.allow(origin, str(url)):
                raise Rejection("robots", f"robots.txt of {host} does not allow it")
            delay = max(delay, await self._robots.delay(origin))
        async with self._pace.turn(host, delay):
            return await self._get(url, self._max_bytes)

    def _require_allowed(self, host: str) -> None:
        if host in self._banned:
            raise Rejection("opted_out", f"{host} is on the opt-out list of domains")
        if not self._config.allow_private and _is_private_literal(host):
            raise Rejection("refused_address", f"{host} is not a public address")

    async def _get(self, url: URL, max_bytes: int) -> bytes | str:
        with _told(url):
            async with self._session.get(url, allow_redirects=False) as answer:
                if answer.status in _REDIRECTS and "Location" in answer.headers:
                    return answer.headers["Location"]
                if answer.status in _PASSING:
                    wait = _retry_after(answer.headers.get("Retry-After"))
                    raise _Passing("http_passing", f"HTTP {answer.status}", wait)
                if answer.status != 200:
                    raise Rejection("http_error", f"HTTP {answer.status}")
                headers = answer.headers.getall("X-Robots-Tag", [])
                tag = opts_out(headers, self._config.opt_out_tags, self._config.user_agent)
                if tag is not None:
                    raise Rejection("opted_out", f"X-Robots-Tag: {tag}")
                return await self._body(answer, max_bytes)

    async def _body(self, answer: aiohttp.ClientResponse, max_bytes: int) -> bytes:
        """The whole body, unpacked, never more than `max_bytes` of it."""
        if (answer.content_length or 0) > max_bytes:
            message = f"{answer.content_length} bytes, the cap is {max_bytes}"
            raise Rejection("too_many_bytes", message)
        unpack = _unpacker(answer.headers.get("Content-Encoding", ""))
        parts, size = list[bytes](), 0
        with ExitStack() as places:
            async for raw in answer.content.iter_chunked(_CHUNK):
                chunk = unpack.decompress(raw, max_bytes - size + 1) if unpack else raw
                if size <= LARGE < size + len(chunk):
                    await self.large.acquire()
                    places.callback(self.large.release)
                parts.append(chunk)
                size += len(chunk)
                if size > max_bytes:
                    raise Rejection("too_many_bytes", f"the cap is {max_bytes} bytes")
            if unpack and not unpack.eof:
                raise _Passing("connection", "the body ends early")
            body = b"".join(parts)
            places.pop_all()  # the place is the taker's now
        return body

    async def _robots_text(self, address: str) -> str | None:
        url = URL(address)
        for _ in range(self._config.redirects + 1):
            self._require_allowed(str(url.host))
            try:
                found = await self._get(url, _ROBOTS_BYTES)
            except Rejection as why:
                if why.reason in ("refused_address", "opted_out"):
                    raise
                return None  # no such file, or none that can be read: everything is allowed
            except _Passing as fault:
                told = f"robots.txt: {fault.rejection.message}"
                raise _Passing(fault.rejection.reason, told, fault.wait) from None
            if isinstance(found, bytes):
                return found.decode("utf-8", "replace")
            url = _parsed(found, url)
        return None


def _parsed(text: str, base: URL | None = None) -> URL:
    """An address that may be asked for; raises Rejection."""
    try:
        if len(text) > _LONGEST_URL:
            raise ValueError("too long")
        url = URL(text.strip()) if base is None else base.join(URL(text.strip()))
        if url.scheme not in ("http", "https") or not url.host or url.user or url.password:
            raise ValueError("not http(s)")
        if not _HOST.fullmatch(str(url.raw_host)) or url.port is None:
            raise ValueError("no host")
    except (ValueError, TypeError, UnicodeError):
        raise Rejection("bad_url", "not an http or https address") from None
    return url.with_fragment(None)


def _is_private_literal(host: str) -> bool:
    try:
        return not is_public(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


class _told:  # noqa: N801 - reads as a phrase: with _told(url)
    """Turns the faults of a request into reasons."""

    def __init__(self, url: URL) -> None:
        self._host = url.host

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None or isinstance(error, Rejection | _Passing | asyncio.CancelledError):
            return
        if any(isinstance(cause, RefusedAddress) for cause in _causes(error)):
            raise Rejection("refused_address", f"{self._host} is not a public address") from None
        if isinstance(error, asyncio.TimeoutError):
            raise _Passing("timeout", f"{self._host} does not answer in time") from None
        if isinstance(error, aiohttp.ClientConnectorDNSError):
            raise _Passing("dns", f"{self._host}: no address known") from None
        if isinstance(error, ssl.SSLError | aiohttp.ClientSSLError):
            raise Rejection("tls", f"{self._host}: no valid certificate") from None
        if isinstance(error, aiohttp.InvalidURL | ValueError):
            raise Rejection("bad_url", "not an http or https address") from None
        if isinstance(error, zlib.error):
            raise _Passing("connection", f"{self._host}: the body cannot be unpacked") from None
        if isinstance(error, aiohttp.ClientError | OSError):
            raise _Passing("connection", f"{self._host}: the connection failed") from None


def _causes(error: BaseException) -> Iterator[BaseException]:
    waiting, seen = [error], set[int]()
    while waiting:
        current = waiting.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        others = [current.__cause__, current.__context__, getattr(current, "os_error", None)]
        others += getattr(current, "exceptions", ())
        waiting += [other for other in others if isinstance(other, BaseException)]


def _unpacker(encoding: str) -> zlib._Decompress | None:
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return None
    if name in ("gzip", "x-gzip", "deflate"):
        return zlib.decompressobj(zlib.MAX_WBITS | 32)
    raise Rejection("http_error", f"Content-Encoding {name[:40]}, which was not asked for")


def _retry_after(value: str | None) -> float | None:
    """Seconds, from seconds or from a date."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=timezone.utc)
    try:
        return max(0.0, (when - datetime.now(timezone.utc)).total_seconds())
    except OverflowError:  # a zone beyond the calendar's ends
        return None
