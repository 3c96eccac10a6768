"""A pool of Ray actors that keep a CLIP loaded, and the handle by which tasks reach them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from data_pipeline.cluster import actor_pool, cores, run_bounded

if TYPE_CHECKING:
    from base.stop import StopFlag
    from data_pipeline.clip import Clip
    from data_pipeline.config import EmbedConfig, Precision
    from data_pipeline.crop import Crop
    from data_pipeline.schema.dataset import ClipInfo

_THREADS = 1  # per actor, whatever the machine has: sums in another order give other bytes

Features = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]  # image, text: [n, D] each


class ClipActor:
    """The body of an actor: keeps one CLIP loaded and answers batches."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._loaded: tuple[tuple[str, Precision], Clip] | None = None

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
            image = loaded.crops(crops.copy())  # what Ray shares is read-only
            return image.cpu().numpy(), loaded.texts(captions).cpu().numpy()

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

    Raises:
        UserError: the CLIP cannot be loaded.
    """
    actors = _actors(ray, config, batches)
    described = run_bounded(
        ray, lambda _: actors[0].describe.remote(clip, config.precision), [0], 1, stop
    )
    ((_, (info, crop)),) = described
    return ClipPool(tuple(actors), clip, info, crop)


def _actors(ray: Any, config: EmbedConfig, batches: int) -> list[Any]:
    """One actor for each share of a GPU, or for each core where there is none.

    A call that dies with its actor is not repeated by Ray: who asked asks another one.
    """
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0) / config.gpu_fraction)
    count = config.actors or gpus or int(resources.get("CPU", cores()))
    kind = ray.remote(max_restarts=-1, max_task_retries=0, scheduling_strategy="SPREAD")(ClipActor)
    count = max(1, min(batches, count))
    if gpus:
        share = config.gpu_fraction
        make = kind.options(num_gpus=share)
        return actor_pool(ray, f"gpu {share}", count, lambda: make.remote("cuda"))
    return actor_pool(ray, "cpu", count, lambda: kind.remote("cpu"))
