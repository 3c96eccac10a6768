"""Weights and configs of other projects on a disk, read without running anything of theirs."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from base.errors import UserError, one_line
from base.files import read_json

_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_ENDINGS = (".safetensors", ".fp16.safetensors", ".bin", ".fp16.bin")
_MOST_BYTES = 1 << 20  # of a config


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """A JSON object of a folder.

    Raises:
        UserError: it is missing, too large, or none.
    """
    path = folder / name
    if path.is_file() and path.stat().st_size > _MOST_BYTES:
        raise UserError(f"{path}: got {path.stat().st_size} bytes, which no config has")
    found = read_json(path)
    if not isinstance(found, dict):
        raise UserError(f"{path}: got {type(found).__name__}, expected an object")
    return found


def weights_file(folder: Path) -> Path:
    """The file of the weights that a folder of one network holds.

    Raises:
        UserError: there is none that is read here.
    """
    for ending in _ENDINGS:
        for stem in _STEMS:
            if (folder / f"{stem}{ending}").is_file():
                return folder / f"{stem}{ending}"
    raise UserError(f"{folder}: has no weights, expected a file such as {_STEMS[0]}.safetensors")


def read_tensors(path: Path, entry: str | None = None) -> dict[str, Tensor]:
    """The tensors of a file, mapped into memory where its form allows.

    `entry`: of a pickle, the name under which its state dict lies.

    Raises:
        UserError: it is damaged, holds anything but tensors, or has no such entry.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (OSError, SafetensorError, ValueError) as error:
            raise UserError(f"{path}: is no safetensors file ({one_line(error)})") from error
    found = read_pickle(path)
    if entry is not None:
        found = found.get(entry) if isinstance(found, Mapping) else None
    if not isinstance(found, Mapping) or not all(isinstance(v, Tensor) for v in found.values()):
        where = "" if entry is None else f" under {entry!r}"
        raise UserError(f"{path}: holds no tensors by name{where}")
    return dict(found)


def read_pickle(path: Path) -> Any:
    """What a file of torch's holds, tensors and plain containers alone.

    Raises:
        UserError: it is damaged, a TorchScript archive, or would run code.
    """
    try:
        mapped = zipfile.is_zipfile(path)  # files of before 2020 are none
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: holds more than tensors, and is not read (torch.load with weights_only)"
        ) from error
    except Exception as error:  # torch.load raises what it likes
        if "TorchScript" in str(error):
            raise UserError(
                f"{path}: is a TorchScript archive, which is code, and is not read; give the same "
                "CLIP's weights with --clip, as transformers' or open_clip's folder"
            ) from error
        raise UserError(f"{path}: cannot be read ({one_line(error)[:200]})") from error
