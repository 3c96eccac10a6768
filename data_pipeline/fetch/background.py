"""Fetching beside other work: an event loop in a thread, many addresses under way."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from types import TracebackType

from data_pipeline.fetch.client import LARGE, Client
from data_pipeline.fetch.config import FetchConfig


class Fetching:
    """Fetches addresses in a thread of its own; a context manager.

    `submit` gives a future of the bytes; it raises Rejection when there are none. What it gave is
    to be handed to `taken`, since only so many large pictures are held at a time.
    """

    def __init__(self, config: FetchConfig, max_bytes: int) -> None:
        self._client = Client(config, max_bytes)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fetch", daemon=True)

    def submit(self, url: str) -> Future[bytes]:
        """Begins with an address."""
        return asyncio.run_coroutine_threadsafe(self._client.fetch(url), self._loop)

    def taken(self, image: bytes) -> None:
        """The picture will not wait here any longer."""
        if len(image) > LARGE:
            self._loop.call_soon_threadsafe(self._client.large.release)

    def __enter__(self) -> Fetching:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._client.__aenter__(), self._loop).result()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        """Gives up what is under way, then the connections."""
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.__aexit__(None, None, None)
