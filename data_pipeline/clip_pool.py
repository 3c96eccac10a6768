"""A pool of Ray actors that keep a CLIP loaded, and the handle by which tasks reach them."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from base.errors import UserError
from data_pipeline.clip_spec import absolute
from data_pipeline.cluster import actor_pool, cause_of, cores
from data_pipeline.room import Waiting, require_room

if TYPE_CHECKING:
    from collections.abc import Mapping

    from base.stop import StopFlag
    from data_pipeline.clip import Clip
    from data_pipeline.config import EmbedConfig, Precision
    from data_pipeline.crop import Crop
    from data_pipeline.schema.dataset import ClipInfo

_LEAST_SECONDS = 30.0  # that the others may take longer than the first
_POLL_SECONDS = 0.5
_THREADS = 1  # per actor, whatever the machine has: sums in another order give other bytes

# Image and text, [n, D] each, and on what kind of device they were computed.
Features = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], str]


class ClipActor:
    """The body of an actor: keeps one CLIP loaded and answers batches."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._loaded: tuple[tuple[str, Precision], Clip] | None = None

    def is_there(self) -> bool:
        """Answers as soon as the actor has found its place."""
        return True

    def describe(self, clip: str, precision: Precision) -> tuple[ClipInfo, Crop]:
        """Loads the CLIP; which one it is, and which pixels it takes."""
        loaded = self._clip(clip, precision)
        return loaded.info, loaded.crop

    def features(
        self, clip: str, precision: Precision, crops: npt.NDArray[np.uint8], captions: list[str]
    ) -> Features:
        """Raw features of pictures [n, H, W, 3], as the crop gives them, and of captions."""
        import torch

        loaded = self._clip(clip, precision)
        with torch.inference_mode():
            image = loaded.crops(crops)
            text = loaded.texts(captions)
            return image.cpu().numpy(), text.cpu().numpy(), loaded.device_kind

    def _clip(self, clip: str, precision: Precision) -> Clip:
        if self._loaded is None or self._loaded[0] != (clip, precision):
            import torch

            from data_pipeline.clip import load_clip

            torch.set_num_threads(_THREADS)
            self._loaded = ((clip, precision), load_clip(clip, self._device, precision))
        return self._loaded[1]


@dataclass(frozen=True)
class ClipPool:
    """Actors with one CLIP; it travels to the tasks that send them batches."""

    actors: tuple[Any, ...]
    clip: str  # as the user named it
    info: ClipInfo
    crop: Crop

    def ask(self, turn: int, crops: npt.NDArray[np.uint8], captions: list[str]) -> Any:
        """A reference to the `Features` of a batch, from the actor whose turn it is."""
        actor = self.actors[turn % len(self.actors)]
        return actor.features.remote(self.clip, self.info.precision, crops, captions)


def start_pool(ray: Any, clip: str, config: EmbedConfig, batches: int, stop: StopFlag) -> ClipPool:
    """Actors for at most so many batches at a time; interruptible, as loading may take long.

    Those that come much later than the first one are done without: their place is not free. What
    is waited for is told on standard error.

    Raises:
        UserError: the CLIP cannot be loaded, or no node can ever hold an actor.
    """
    name, clip = clip, absolute(clip)  # actors work elsewhere
    needs = _needs(ray, config)
    require_room(ray, f"clip: {name}", needs)
    waiting = Waiting(ray, f"clip: {name}", needs)
    actors = _actors(ray, config, batches, needs)
    placed = [actor.is_there.remote() for actor in actors]
    asked = {actor.describe.remote(clip, config.precision): actor for actor in actors}
    there: list[Any] = []
    described: tuple[ClipInfo, Crop] | None = None
    began, until, last = time.monotonic(), math.inf, "no place for one"
    while asked and time.monotonic() < until:
        stop.raise_if_requested()
        ready, _ = ray.wait(list(asked), num_returns=1, timeout=_POLL_SECONDS)
        if described is None:
            waiting.still(len(ray.wait(placed, num_returns=len(placed), timeout=0)[0]))
        for reference in ready:
            actor = asked.pop(reference)
            try:
                described = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                raise cause_of(error) from error
            except ray.exceptions.RayError as error:
                last = str(error).strip().splitlines()[0]
                continue
            there.append(actor)
            took = time.monotonic() - began
            until = min(until, began + took + max(_LEAST_SECONDS, took))
    if described is None:
        raise UserError(f"clip: {clip}: every actor died while it loaded ({last})")
    return ClipPool(tuple(there), clip, *described)


def _needs(ray: Any, config: EmbedConfig) -> dict[str, float]:
    """What an actor takes: a share of a GPU, or a core where there is none."""
    gpus = int(ray.cluster_resources().get("GPU", 0))
    return {"GPU": config.gpu_fraction} if gpus else {"CPU": 1}


def _actors(ray: Any, config: EmbedConfig, batches: int, needs: Mapping[str, float]) -> list[Any]:
    """One actor for each share of a GPU, or for each core where there is none.

    A call that dies with its actor is not repeated by Ray: who asked asks another one.
    """
    resources = ray.cluster_resources()
    share = needs.get("GPU")
    gpus = int(resources["GPU"]) * int(1 / share) if share else 0
    count = config.actors or gpus or int(resources.get("CPU", cores()))
    count = max(1, min(batches, count))
    kind = ray.remote(max_restarts=-1, max_task_retries=0, scheduling_strategy="SPREAD")(ClipActor)
    if share:
        make = kind.options(num_gpus=share, num_cpus=0)  # CPUs are for the tasks
        return actor_pool(ray, f"gpu {share}", min(count, gpus), lambda: make.remote("cuda"))
    return actor_pool(ray, "cpu", count, lambda: kind.remote("cpu"))
