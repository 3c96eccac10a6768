"""Bytes of one process by what they are for: the arithmetic of each engine."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Literal

from trainer.config import Precision

EngineName = Literal["local", "zero 0", "zero 1", "zero 2", "zero 3"]
ENGINES: tuple[EngineName, ...] = ("local", "zero 0", "zero 1", "zero 2", "zero 3")

_LARGEST_BUCKET = 500_000_000  # elements, as the engine sets it
_MOST_GATHERED = 1_000_000_000  # elements that ZeRO 3 keeps gathered, DeepSpeed's default


@dataclass(frozen=True)
class Model:
    """What the sums depend on."""

    trained: int  # parameters
    fixed: int  # bytes of a frozen text tower
    precision: Precision
    activations: int  # bytes of one micro-batch
    averages: int = 1  # profiles of EMA
    offload: bool = False  # masters, moments and averages lie in the host's memory with ZeRO 1 to 3
    accumulates: bool = False  # gradients of several micro-batches
    staged: bool = False  # saves are written from a copy in the host's memory
    snapshots: int = 0  # profiles of EMA of which snapshots are kept


@dataclass(frozen=True)
class Memory:
    """Bytes that one process holds at the height of a step."""

    weights: int  # that the model computes with
    gradients: int
    masters: int  # float32 copies, where the weights are not these
    moments: int
    ema: int
    buckets: int  # of gradients on their way to other processes, and weights gathered from them
    frozen: int
    activations: int  # of the backward pass
    update: int  # that the optimizer step makes beside all these, when no activations are left

    @property
    def total(self) -> int:
        """The most that is held at once."""
        largest = max(self.activations, self.update)
        return int(sum(asdict(self).values())) - self.activations - self.update + largest


def memory_of(engine: EngineName, model: Model, processes: int) -> Memory:
    """What a process of `processes` holds on its device."""
    count, low = model.trained, _width(model.precision)
    own = math.ceil(count / processes)  # elements of what is cut among all
    whole = count if engine in ("local", "zero 0") else own
    memory = Memory(
        weights=low * (own if engine == "zero 3" else count),
        gradients=_gradients(engine, model.precision, count, own),
        masters=_masters(engine, model.precision, whole),
        moments=8 * whole,
        ema=4 * own * model.averages,
        buckets=_buckets(engine, model.precision, count),
        frozen=model.fixed,
        activations=model.activations,
        update=_update(engine, model.precision, count, processes),
    )
    if not _offloads(engine, model):
        return memory
    gradients = memory.gradients
    if engine == "zero 2":  # they leave with the buckets
        gradients = 0
    elif engine == "zero 1":  # those of others' partitions wait for the step's end
        gradients = 4 * (count - own) if model.precision == "fp32" else 4 * count
    return replace(memory, masters=0, moments=0, ema=0, gradients=gradients)


def host_bytes(engine: EngineName, model: Model, processes: int) -> int:
    """What a process of `processes` holds in its host's memory: offloaded state, saves' copies."""
    own = math.ceil(model.trained / processes)
    state = (4 + 8 + 4 * model.averages) * own  # masters, moments, averages
    held = state + 4 * model.snapshots * own if model.staged else 0
    if _offloads(engine, model):
        held += state + 4 * own  # with the gradients that the optimizer reads
        if engine != "zero 3":  # new weights on their way back, and sums of micro-batches
            held += (_width(model.precision) + (4 if model.accumulates else 0)) * own
    return held


def _offloads(engine: EngineName, model: Model) -> bool:
    return model.offload and engine in ("zero 1", "zero 2", "zero 3")


def _width(precision: Precision) -> int:
    """Bytes of a weight."""
    return 2 if precision != "fp32" else 4


def _gradients(engine: EngineName, precision: Precision, count: int, own: int) -> int:
    match engine:
        case "zero 2" | "zero 3":
            return 4 * own
        case "zero 0":
            return _width(precision) * count
        case _:  # in halves beside their float32 sum
            return 4 * count + (2 * count if precision != "fp32" else 0)


def _masters(engine: EngineName, precision: Precision, whole: int) -> int:
    shared = engine in ("local", "zero 0") and precision == "fp32"  # they are the weights
    return 0 if shared else 4 * whole


def _buckets(engine: EngineName, precision: Precision, count: int) -> int:
    if engine in ("local", "zero 0") or (engine == "zero 1" and precision != "fp32"):
        return 0
    gathered = min(count, _MOST_GATHERED) if engine == "zero 3" else 0
    return _width(precision) * (min(count, _LARGEST_BUCKET) + gathered)


def _update(engine: EngineName, precision: Precision, count: int, processes: int) -> int:
    """Gradients on their way into sums and partitions; as measured (tests/trainer/test_plan.py)."""
    match engine:
        case "zero 0":
            return 4 * count
        case "zero 1":
            return 6 * count if precision != "fp32" else 0
        case "zero 2":
            return _width(precision) * min(count, _LARGEST_BUCKET)
        case "zero 3":
            return count * (4 if processes == 1 else 2 * _width(precision))
        case _:
            return 0
