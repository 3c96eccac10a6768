"""Global batches in order, read ahead by a thread or by worker processes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Protocol

import numpy as np

from base.errors import UserError
from trainer.batch import Batch
from trainer.loader.arrays import empty_arrays
from trainer.loader.plan import Plan
from trainer.loader.samples import SampleReader
from trainer.loader.shares import Share
from trainer.loader.workers import Workers


class _Source(Protocol):
    def __next__(self) -> list[Batch]: ...

    def close(self) -> None: ...


class Loader:
    """Iterates over a rank's micro-batches, one list a step; a context manager.

    `waited` counts the seconds that the consumer spent waiting. With `workers` the reading is done
    in processes; the batches are the same bytes.
    """

    def __init__(self, plan: Plan, workers: int, read_ahead: int) -> None:
        self.waited = 0.0
        self._source: _Source
        if workers == 0:
            self._source = _Thread(plan, read_ahead)
        else:
            self._source = Workers(plan, workers, read_ahead)

    def __iter__(self) -> Iterator[list[Batch]]:
        while True:
            begun = time.monotonic()
            batches = next(self._source, None)
            self.waited += time.monotonic() - begun
            if batches is None:
                return
            yield batches

    def take_waited(self) -> float:
        """Seconds waited since the last call."""
        waited, self.waited = self.waited, 0.0
        return waited

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._source.close()  # ends the thread, or the worker processes


class Coming:
    """A loader's batches, each given when it is known whether the one after it can be read.

    So a rank that will have nothing for the next step can tell the others in this one, which all
    take together. `failure` says why nothing comes after the batch that was given last.
    """

    def __init__(self, loader: Loader) -> None:
        self.failure: UserError | None = None
        self._batches = iter(loader)
        self._next = self._read()

    def __iter__(self) -> Iterator[list[Batch]]:
        while (batches := self._next) is not None:
            self._next = self._read()
            yield batches

    def _read(self) -> list[Batch] | None:
        try:
            return next(self._batches, None)
        except UserError as error:
            self.failure = error
            return None


class _Thread(Iterator[list[Batch]]):
    """Reads steps in a thread into a bounded queue; an error there is raised here."""

    def __init__(self, plan: Plan, depth: int) -> None:
        self._plan = plan
        self._queue: queue.Queue[list[Batch] | BaseException | None] = queue.Queue(depth)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read, name="loader", daemon=True)
        self._thread.start()

    def __next__(self) -> list[Batch]:
        item = self._queue.get()
        if item is None:
            raise StopIteration
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """End the thread."""
        self._over.set()
        self._thread.join()

    def _read(self) -> None:
        plan = self._plan
        try:
            reader = SampleReader(plan.data, plan.needs, plan.seed)
            walk = reader.walk(Share(plan.rank, plan.world_size), plan.start, plan.end)
            try:
                for step in range(plan.steps):
                    positions = plan.positions(step)
                    arrays = empty_arrays(plan.needs, reader.dim, len(positions))
                    walk.fill(arrays, np.arange(len(positions)), positions)
                    self._put(plan.cut(arrays, positions))
                    if self._over.is_set():
                        return
            finally:
                walk.close()
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _put(self, item: list[Batch] | BaseException | None) -> None:
        while not self._over.is_set():
            try:
                self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
            return
