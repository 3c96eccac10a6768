"""Processes that read a rank's batches together, each its own streams, into shared memory.

The parent tells every worker which steps to fill; a worker answers each in turn. What a worker
does is a pure function of its number, so one that dies is replaced and asked again.
"""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from base.errors import UserError, may_pass, one_line, retold
from trainer.batch import Batch
from trainer.loader.arrays import Arrays, layout
from trainer.loader.plan import Plan
from trainer.loader.samples import SampleReader
from trainer.loader.shares import Share

_SHIELDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_PATIENCE = 5.0  # seconds for a worker to end by itself
_ALIGNED = 64


@dataclass
class _Worker:
    """A process, our end of its pipe, and how far it is."""

    process: Any
    pipe: Connection
    filled: int  # steps that it has answered, counted from step 0
    died_at: int | None = field(default=None)  # of the one before it


class Workers(Iterator[list[Batch]]):
    """Batches of steps in order; `depth` steps are under way."""

    def __init__(self, plan: Plan, workers: int, depth: int) -> None:
        self._plan, self._count = plan, workers
        dim = SampleReader(plan.data, plan.needs, plan.seed).dim
        self._depth = min(max(depth, 1), max(plan.steps, 1))
        # The pages live in an unlinked file: nothing is left behind, however the run ends.
        self._context: Any = multiprocessing.get_context("forkserver")
        preloaded = [__name__, *(["open_clip.tokenizer"] if plan.needs.tokens else [])]
        self._context.set_forkserver_preload(preloaded)  # so that a worker begins at once
        size = _slot_bytes(plan, dim)
        self._memory = self._context.RawArray(ctypes.c_byte, max(size * self._depth, 1))
        self._slots = _open_slots(self._memory, plan, dim, self._depth)
        self._dim = dim
        self._step = 0  # the next one to be given
        self._workers = [self._start(number, 0, None) for number in range(workers)]
        for step in range(self._depth):
            self._ask(step)

    def __next__(self) -> list[Batch]:
        if self._step >= self._plan.steps:
            raise StopIteration
        for number in range(self._count):
            self._wait(number)
        positions = self._plan.positions(self._step)
        own = _copied(self._slots[self._step % self._depth], len(positions))
        self._step += 1
        self._ask(self._step + self._depth - 1)
        return self._plan.cut(own, positions)

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.pipe.close()
        for worker in self._workers:
            worker.process.join(_PATIENCE)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()

    def _start(self, number: int, step: int, died_at: int | None) -> _Worker:
        ours, theirs = self._context.Pipe()
        share = Share(self._plan.rank, self._plan.world_size, number, self._count)
        process = self._context.Process(
            target=_work,
            args=(self._plan, share, step, self._dim, self._memory, self._depth, theirs),
            name=f"loader-{number}",
            daemon=True,
        )
        process.start()
        theirs.close()
        return _Worker(process, ours, step, died_at)

    def _ask(self, step: int) -> None:
        if step < self._plan.steps:
            for worker in self._workers:
                with suppress(OSError):  # it is gone: `_wait` will find out
                    worker.pipe.send(step)

    def _wait(self, number: int) -> None:
        """Wait until a worker has filled its rows of the next step."""
        while self._workers[number].filled <= self._step:
            worker = self._workers[number]
            try:
                answer = worker.pipe.recv()
            except (EOFError, OSError):
                self._replace(number)
                continue
            if isinstance(answer, BaseException):
                raise answer
            worker.filled = answer + 1

    def _replace(self, number: int) -> None:
        """Start a worker anew where the last one ended.

        Raises:
            UserError: the one before it ended at the same step.
        """
        lost = self._workers[number]
        lost.pipe.close()
        lost.process.join(_PATIENCE)
        how = _ending(lost.process.exitcode)
        if lost.died_at == lost.filled:
            raise UserError(f"data loader: worker {number} {how}, twice at the same step")
        print(f"warning: data loader: worker {number} {how}; started anew", file=sys.stderr)
        self._workers[number] = worker = self._start(number, lost.filled, lost.filled)
        for step in range(lost.filled, min(self._step + self._depth, self._plan.steps)):
            with suppress(OSError):
                worker.pipe.send(step)


def _work(
    plan: Plan, share: Share, first: int, dim: int, memory: Any, depth: int, pipe: Connection
) -> None:
    """The body of a worker process: fills steps as asked, until the parent hangs up."""
    for number in _SHIELDED:  # the launcher signals all processes: only the trainer answers
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    try:
        slots = _open_slots(memory, plan, dim, depth)
        reader = SampleReader(plan.data, plan.needs, plan.seed)
        walk = reader.walk(share, plan.start + first * plan.batch, plan.end)
        try:
            while True:
                step = pipe.recv()
                positions = plan.positions(step)
                rows = share.rows(positions)
                walk.fill(slots[step % depth], rows, positions[rows])
                pipe.send(step)
        except EOFError:
            return
        finally:
            walk.close()
    except (ConnectionError, BrokenPipeError):
        return
    except Exception as error:
        with suppress(OSError):
            pipe.send(_plain(error))


def _plain(error: Exception) -> UserError:
    """What any process can unpickle; its causes stay behind."""
    passing = may_pass(error)
    if isinstance(error, UserError):
        return retold(str(error), passing) if passing else error
    return retold(f"data loader: {type(error).__name__}: {one_line(error)}", passing)


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"ended with code {code}"


def _slot_bytes(plan: Plan, dim: int) -> int:
    parts = filter(None, layout(plan.needs, dim, plan.most_rows))
    return sum(_padded(math.prod(shape) * np.dtype(kind).itemsize) for shape, kind in parts)


def _open_slots(memory: Any, plan: Plan, dim: int, depth: int) -> list[Arrays]:
    """The arrays of each slot, as views of the shared memory."""
    offset, slots = 0, []
    for _ in range(depth):
        arrays: list[Any] = []
        for part in layout(plan.needs, dim, plan.most_rows):
            if part is None:
                arrays.append(None)
                continue
            shape, kind = part
            count = math.prod(shape)
            flat = np.frombuffer(memory, kind, count, offset)
            arrays.append(flat.reshape(shape))
            offset += _padded(flat.nbytes)
        slots.append(Arrays(*arrays))
    return slots


def _padded(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def _copied(slot: Arrays, rows: int) -> Arrays:
    """The first rows of a slot in memory of their own: the slot is filled again."""
    return Arrays(*(None if part is None else part[:rows].copy() for part in slot))
