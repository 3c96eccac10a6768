"""Fetching beside other work: an event loop in a thread, many addresses under way."""

from __future__ import annotations

import asyncio
import threading
from asyncio import Task
from concurrent.futures import Future
from types import TracebackType

from data_pipeline.fetch.client import LARGE, Client
from data_pipeline.fetch.config import FetchConfig
from data_pipeline.fetch.lists import read_hashes


class Fetching:
    """Fetches addresses in a thread of its own; a context manager.

    `submit` gives a future of the bytes; it raises Rejection when there are none. What it gave is
    to be handed to `taken`, since only so many large pictures are held at a time; a future that
    nobody waits for any longer is handed to `give_up`.

    Raises:
        UserError: an opt-out list cannot be read.
    """

    def __init__(self, config: FetchConfig, max_bytes: int) -> None:
        self._client = Client(config, max_bytes)
        self.unwanted = read_hashes(config.opt_out_hashes)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fetch", daemon=True)

    def submit(self, url: str) -> Future[bytes]:
        """Begins with an address."""
        future: Future[bytes] = Future()
        self._loop.call_soon_threadsafe(self._begin, url, future)
        return future

    def _begin(self, url: str, future: Future[bytes]) -> None:
        task = self._loop.create_task(self._client.fetch(url))
        task.add_done_callback(lambda done: self._hand_over(done, future))
        future.add_done_callback(
            lambda done: self._loop.call_soon_threadsafe(task.cancel) if done.cancelled() else None
        )

    def _hand_over(self, task: Task[bytes], future: Future[bytes]) -> None:
        """The task's end to whoever waits for it; a place that nobody takes over is free again."""
        if task.cancelled():
            future.cancel()
            return
        wanted, error = future.set_running_or_notify_cancel(), task.exception()
        if wanted and error is not None:
            future.set_exception(error)
        elif wanted:
            future.set_result(task.result())
        elif error is None and len(task.result()) > LARGE:
            self._client.large.release()

    def taken(self, image: bytes) -> None:
        """The picture will not wait here any longer."""
        if len(image) > LARGE:
            self._loop.call_soon_threadsafe(self._client.large.release)

    def give_up(self, future: Future[bytes]) -> None:
        """Nobody waits for it any longer."""
        if not future.cancel() and future.exception() is None:
            self.taken(future.result())

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
