"""Damaged answers of a web server, as the client that fetches pictures meets them."""

from __future__ import annotations

import asyncio
from typing import Any

from data_pipeline.fetch.client import LARGE, Client
from data_pipeline.fetch.config import FetchConfig
from data_pipeline.row import Rejection
from data_pipeline.schema.dataset import REASONS

_MAX_BYTES = 2 << 20
_SECONDS = 1.0  # of a case: some answers ask for patience
_PLACES = 16  # for large bodies; all of them must be free again


def fetched(answer: bytes, number: int) -> str:
    """`kept` or the reason, of a picture whose server answers every request with these bytes.

    Every third case asks for robots.txt as well and gets the same. Redirects are relative, so they
    stay on loopback.
    """
    config = FetchConfig(
        allow_private=True,
        robots=number % 3 == 0,
        attempts=2,
        backoff_seconds=0.0,
        redirects=2,
        silence_seconds=_SECONDS / 2,
        deadline_seconds=_SECONDS,
    )
    return asyncio.run(_fetched(answer, config, in_parts=number % 2 == 0))


async def _fetched(answer: bytes, config: FetchConfig, in_parts: bool) -> str:
    odd: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: odd.append(context))

    async def answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            half = len(answer) // 2 if in_parts else 0
            for part in (answer[:half], answer[half:]):
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client has gone
        finally:
            writer.close()

    server = await asyncio.start_server(answered, "127.0.0.1", 0)
    async with server, Client(config, _MAX_BYTES) as client:
        port = server.sockets[0].getsockname()[1]
        try:
            body = await client.fetch(f"http://127.0.0.1:{port}/a.jpg")
        except Rejection as why:
            result, held = _known(why), 0
        else:
            result, held = "kept", int(len(body) > LARGE)
            if len(body) > _MAX_BYTES:
                raise AssertionError(f"{len(body)} bytes, the cap is {_MAX_BYTES}")
        for _ in range(_PLACES - held):
            if client.large.locked():
                raise AssertionError("a place for a large body is never given back")
            await client.large.acquire()
    if odd:
        raise AssertionError(f"the loop was told of {odd[0]}")
    return result


def _known(why: Rejection) -> str:
    if why.reason not in REASONS or "\n" in why.message:
        raise AssertionError(f"got {why.reason} ({why.message})")
    return why.reason
