"""Global batches in order, read ahead by a thread or by worker processes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from base.errors import UserError
from trainer.batch import Batch, Needs
from trainer.config import DataConfig
from trainer.loader.order import cut, share
from trainer.loader.samples import SampleReader, gather_positions


@dataclass(frozen=True)
class Plan:
    """Which positions a rank reads: all of it that the loader's processes need to know."""

    data: DataConfig
    needs: Needs
    seed: int
    start: int  # position of the first global batch
    batch: int
    steps: int
    rank: int
    world_size: int
    micro_batches: int

    def cuts(self, step: int) -> list[tuple[int, int]]:
        """[first, last) of each of this rank's micro-batches in global batch `step`."""
        first, last = share(self.start + step * self.batch, self.batch, self.rank, self.world_size)
        return cut(first, last, self.micro_batches)


class StepData(Dataset[list[Batch]]):
    """The micro-batches of each step; opened anew in every process that uses it."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._reader: SampleReader | None = None

    def __len__(self) -> int:
        return self._plan.steps

    def __getitem__(self, step: int) -> list[Batch]:
        if self._reader is None:
            self._reader = SampleReader(self._plan.data, self._plan.needs, self._plan.seed)
        reader = self._reader
        return [reader.batch(positions) for positions in gather_positions(self._plan.cuts(step))]

    def __getstate__(self) -> dict[str, Any]:
        return {"_plan": self._plan, "_reader": None}


class Loader:
    """Iterates over a rank's micro-batches, one list a step; a context manager.

    `waited` counts the seconds that the consumer spent waiting. With `workers` the reading is done
    in processes; the batches are the same bytes.
    """

    def __init__(self, plan: Plan, workers: int, read_ahead: int) -> None:
        self.waited = 0.0
        data = StepData(plan)
        self._source: _ReadAhead | Generator[list[Batch]]
        if workers == 0:
            self._source = _ReadAhead(data, read_ahead)
        else:
            self._source = _from_processes(data, workers, read_ahead)

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


class _ReadAhead(Iterator[list[Batch]]):
    """Reads steps in a thread into a bounded queue; an error there is raised here."""

    def __init__(self, data: StepData, depth: int) -> None:
        self._data = data
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
        try:
            for step in range(len(self._data)):
                self._put(self._data[step])
                if self._over.is_set():
                    return
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


def _from_processes(data: StepData, workers: int, read_ahead: int) -> Generator[list[Batch]]:
    loader = DataLoader(
        data,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=max(read_ahead // workers, 1),
        multiprocessing_context="forkserver",  # a fork would copy locks that other threads hold
        worker_init_fn=_begin_worker,
    )
    try:
        yield from loader
    except RuntimeError as error:
        raise UserError(f"data loader: {' '.join(str(error).split())}") from error
    except (ConnectionError, EOFError) as error:  # it died with a batch half handed over
        raise UserError(f"data loader: DataLoader worker is gone ({error})") from error


def _begin_worker(number: int) -> None:
    torch.set_num_threads(1)
