"""A shard's embeddings: batches to the CLIP's actors while the pictures are made, rows back."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from base.errors import UserError
from data_pipeline.clip_pool import ClipPool, Features
from data_pipeline.cluster import cause_of

ROWS_PER_BATCH = 128  # of one shard, cut from its first row on: part of what makes equal bytes
_UNDER_WAY = 2  # batches of a shard that are asked for and not answered
_ATTEMPTS = 12  # of a batch whose actors die
_PAUSE_SECONDS = 5.0  # once every actor was asked: one that died starts again meanwhile

Half = npt.NDArray[np.float16]
Single = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Embedded:
    """Stored rows of pictures and captions, [n, D] each, and their metadata columns, [n]."""

    image: Half
    text: Half
    columns: dict[str, Single]  # similarity, img_norm, text_norm
    devices: tuple[str, ...]  # the kinds that computed them


@dataclass
class _Batch:
    crops: npt.NDArray[np.uint8]  # [n, H, W, 3]
    captions: list[str]
    answer: Any  # Ray's reference


@dataclass
class ShardFeatures:
    """Collects a shard's rows, in order; at most two batches wait for their answers.

    `turn` says which actor is asked first: shards begin with different ones.
    """

    pool: ClipPool
    turn: int
    where: str  # for messages
    _crops: list[npt.NDArray[np.uint8]] = field(default_factory=list)
    _captions: list[str] = field(default_factory=list)
    _waiting: deque[_Batch] = field(default_factory=deque)
    _done: list[Features] = field(default_factory=list)

    def add(self, crop: npt.NDArray[np.uint8], caption: str) -> None:
        """The next row: a picture as the pool's crop gives it, and its caption."""
        self._crops.append(crop)
        self._captions.append(caption)
        if len(self._crops) == ROWS_PER_BATCH:
            self._send()

    def finish(self) -> Embedded:
        """The rows of all that was added, at least one.

        Raises:
            UserError: the CLIP gives what cannot be normalised, or its actors keep dying.
        """
        if self._crops:
            self._send()
        while self._waiting:
            self._receive()
        image, img_norm = normalised(self._joined(0), f"{self.where}: image")
        text, text_norm = normalised(self._joined(1), f"{self.where}: text")
        columns = {
            "similarity": cosine(image, text),
            "img_norm": img_norm,
            "text_norm": text_norm,
        }
        devices = {device for _, _, device in self._done}
        return Embedded(image, text, columns, tuple(sorted(devices)))

    def _joined(self, which: Literal[0, 1]) -> Single:
        return np.concatenate([features[which] for features in self._done])

    def _send(self) -> None:
        while len(self._waiting) >= _UNDER_WAY:
            self._receive()
        crops, captions = np.stack(self._crops), self._captions
        self._waiting.append(_Batch(crops, captions, self._ask(crops, captions)))
        self._crops, self._captions = [], []

    def _ask(self, crops: npt.NDArray[np.uint8], captions: list[str]) -> Any:
        self.turn += 1
        return self.pool.ask(self.turn, crops, captions)

    def _receive(self) -> None:
        """The oldest batch's answer; another actor is asked where one died."""
        import ray

        batch = self._waiting.popleft()
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self._done.append(ray.get(batch.answer))
                return
            except ray.exceptions.RayTaskError as error:
                raise cause_of(error) from error
            except ray.exceptions.RayError as error:
                if attempt == _ATTEMPTS:
                    first = str(error).strip().splitlines()[0]
                    raise UserError(f"{self.where}: the CLIP's actors died ({first})") from error
                if attempt % len(self.pool.actors) == 0:
                    time.sleep(_PAUSE_SECONDS)
                batch.answer = self._ask(batch.crops, batch.captions)


def normalised(features: Single, what: str) -> tuple[Half, Single]:
    """Rows of norm 1 in float16, divided in float32, and the norms they had.

    Raises:
        UserError: a row is zero or not finite.
    """
    norms = np.linalg.norm(features, axis=1)  # [n]
    if not (np.isfinite(norms) & (norms > 0)).all():
        raise UserError(f"{what} features are zero or not finite")
    return (features / norms[:, None]).astype(np.float16), norms


def cosine(left: Half, right: Half) -> Single:
    """Cosine of the stored rows, [n], computed in float64."""
    a, b = left.astype(np.float64), right.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(axis=1) / norms, np.float32)
