"""Weights that a new run begins with: another run's, or a safetensors file's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from safetensors import SafetensorError, safe_open
from torch import Tensor

from base.errors import UserError
from base.files import sha256_file
from trainer.checkpoint.export import stored_kind
from trainer.checkpoint.manifest import MANIFEST
from trainer.checkpoint.read import (
    Checkpoint,
    SliceReader,
    require_whole,
    resolve_checkpoint,
)
from trainer.ema.profiles import KIND
from trainer.engine.base import Engine

_FORM = re.compile(
    r"(?P<path>.+?)(?:@(?P<samples>\d+))?(?::(?P<weights>raw|ema(?:_[0-9.]+)?))?", re.DOTALL
)


class Origin(NamedTuple):
    """RUN[@SAMPLES][:WEIGHTS] or FILE, taken apart; WEIGHTS as for an export."""

    path: Path  # absolute, so that it is the same from every folder
    samples: int | None  # None: the latest checkpoint
    weights: str

    def __str__(self) -> str:
        if self.path.suffix == ".safetensors":
            return str(self.path)
        at = "" if self.samples is None else f"@{self.samples}"
        return f"{self.path}{at}:{self.weights}"


class Weights(Protocol):
    """Named tensors of which ranges can be read."""

    shapes: Mapping[str, tuple[int, ...]]

    def verify(self) -> str:
        """Compare every byte with what was written; the SHA-256 that stands for them all."""
        ...

    def part(self, name: str, start: int, count: int) -> Tensor:
        """Elements [start, start + count) of the flattened tensor, fp32 [count]."""
        ...


def parse_origin(text: str) -> Origin:
    """Take `init_from` apart; averaged weights unless it says otherwise.

    Raises:
        UserError: a checkpoint was asked of a file, which has none.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise UserError("init_from: got '', expected RUN[@SAMPLES][:WEIGHTS] or FILE.safetensors")
    path, samples, weights = Path(found["path"]).absolute(), found["samples"], found["weights"]
    if path.suffix == ".safetensors" and (samples or weights):
        raise UserError(
            f"init_from: got {text!r}, expected {found['path']} alone: "
            "a file has one set of weights and no checkpoints"
        )
    return Origin(path, int(samples) if samples else None, weights or KIND)


def find_weights(
    engine: Engine, origin: Origin, wanted: Mapping[str, tuple[int, ...]]
) -> tuple[Weights, dict[str, str]]:
    """Weights of the shapes `wanted`, the same on all ranks, and what a run records of them.

    Raises:
        UserError: there is no such run, checkpoint or file, it is damaged, or another model's; the
            message names the first tensor that is missing, of another shape, or too many. All
            ranks raise alike.
    """
    outcome = engine.gather(_look(origin, wanted) if engine.rank == 0 else None)[0]
    if isinstance(outcome, str):
        raise UserError(f"init_from: {outcome}")
    resolved, sha256 = outcome
    return _open(resolved), {"weights": str(resolved), "sha256": sha256}


def _look(origin: Origin, wanted: Mapping[str, tuple[int, ...]]) -> tuple[Origin, str] | str:
    """The origin that all ranks shall open and the SHA-256 of it, or what is wrong with it."""
    try:
        resolved = _resolve(origin)
        weights = _open(resolved)
        _require_shapes(weights, wanted, resolved)
        return resolved, weights.verify()
    except UserError as error:
        return str(error)


def _resolve(origin: Origin) -> Origin:
    """The same with the samples of the latest checkpoint, which may be another one soon."""
    if origin.path.is_dir():
        found = resolve_checkpoint(origin.path, origin.samples)
        return origin._replace(samples=found.manifest.samples)
    if not origin.path.is_file():
        raise UserError(f"{origin.path}: no such RUN or safetensors file")
    return origin


def _open(origin: Origin) -> Weights:
    if origin.path.is_dir():
        return _RunWeights(resolve_checkpoint(origin.path, origin.samples), origin.weights)
    return _FileWeights(origin.path)


def _require_shapes(
    weights: Weights, wanted: Mapping[str, tuple[int, ...]], origin: Origin
) -> None:
    for name in sorted({*weights.shapes, *wanted}):
        there, expected = weights.shapes.get(name), wanted.get(name)
        if there != expected:
            raise UserError(f"{origin}: {name}: got {_shown(there)}, expected {_shown(expected)}")


def _shown(shape: tuple[int, ...] | None) -> str:
    return "no such tensor" if shape is None else str(list(shape))


class _RunWeights:
    def __init__(self, checkpoint: Checkpoint, weights: str) -> None:
        self._checkpoint, manifest = checkpoint, checkpoint.manifest
        trained = {name: record.shape for name, record in manifest.tensors.items()}
        self.shapes: Mapping[str, tuple[int, ...]] = {**trained, **manifest.fixed}
        self._fixed = set(manifest.fixed)
        self._kind = stored_kind(checkpoint, weights)
        self._reader = SliceReader(checkpoint)

    def verify(self) -> str:
        require_whole(self._checkpoint)
        return sha256_file(self._checkpoint.folder / MANIFEST)  # it has those of the files

    def part(self, name: str, start: int, count: int) -> Tensor:
        if name in self._fixed:
            return self._reader.fixed(name).reshape(-1)[start : start + count].float()
        return self._reader(self._kind, name, start, count)


class _FileWeights:
    def __init__(self, path: Path) -> None:
        self._path, self._file = path, _opened(path)
        names = self._file.keys()
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: tuple(self._file.get_slice(name).get_shape()) for name in names
        }

    def verify(self) -> str:
        return sha256_file(self._path)

    def part(self, name: str, start: int, count: int) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name)
        return tensor.reshape(-1)[start : start + count].float()


def _opened(path: Path) -> Any:
    try:
        return safe_open(str(path), framework="pt")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: is no safetensors file ({error})") from error
