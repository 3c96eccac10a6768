"""What a CLIP string names, found without loading anything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from base.clip_reference import (
    CONFIG_NAME,
    EXPORT,
    WEIGHTS_NAMES,
    find_export,
    find_weights,
    split_named,
)
from base.config import fingerprint
from base.errors import UserError
from base.files import read_json, sha256_file
from data_pipeline.schema.dataset import ClipInfo

FORMS = (
    "none, random:SEED, MODEL:WEIGHTS (an open_clip name and a file or tag), a RUN of stage clip, "
    "or a folder with open_clip_config.json and open_clip_model.safetensors"
)
_PUBLISHED = "published:"


@dataclass(frozen=True)
class ClipSpec:
    """A CLIP's parts by kind: random weights by seed, a folder of open_clip's, a named model."""

    kind: Literal["random", "folder", "named", "published"]
    model: str  # for the record; of a named model, open_clip's name
    label: str  # for the record: seed, file name or tag
    weights: Path | None = None  # None: random, or a tag that open_clip fetches

    def is_for(self, info: ClipInfo) -> bool:
        """Whether `info` records these weights; False also when that is not known yet."""
        if (self.model, self.label) != (info.model, info.pretrained):
            return False
        if self.weights is None:
            return self.kind in ("random", "published")
        return sha256_file(self.weights) == info.weights_sha256


def find_clip(text: str) -> ClipSpec:
    """The parts of the CLIP that `text` names.

    Raises:
        UserError: `text` has no known form, or files are missing.
    """
    if text.startswith("random:"):
        if not text.removeprefix("random:").isdecimal():
            raise UserError(f"clip: got {text!r}, expected random:SEED with a whole number")
        return ClipSpec("random", "random", text)
    if text.startswith(_PUBLISHED):
        return _published(text)
    folder = Path(text)
    if folder.is_dir():
        return _find_folder(folder)
    named = split_named(text)
    if named is None:
        raise UserError(f"clip: got {text!r}, which is no folder; expected {FORMS}")
    model, weights = named
    path = Path(weights)
    if path.is_file():
        return ClipSpec("named", model, path.name, path.absolute())
    return ClipSpec("named", model, weights)


def _published(text: str) -> ClipSpec:
    model, _, weights = text.removeprefix(_PUBLISHED).partition("/")
    if not model or not weights:
        raise UserError(f"clip: got {text!r}, expected published:MODEL/WEIGHTS, as a record")
    return ClipSpec("published", model, _PUBLISHED + weights)


def absolute(text: str) -> str:
    """The same CLIP, named so that it is found from any folder."""
    if Path(text).is_dir():
        return str(Path(text).absolute())
    named = split_named(text)
    if named is not None and Path(named[1]).is_file():
        return f"{named[0]}:{Path(named[1]).absolute()}"
    return text


def _find_folder(folder: Path) -> ClipSpec:
    place = find_export(folder)
    if place is None:
        raise UserError(
            f"clip: {folder} holds neither {CONFIG_NAME} nor {EXPORT} (of a finished RUN)"
        )
    weights = find_weights(str(place))
    if weights is None:
        raise UserError(f"clip: {place} has no {WEIGHTS_NAMES[0]}")
    config = read_json(place / CONFIG_NAME)
    try:
        name = f"custom-{fingerprint(config['model_cfg'])[:12]}"
    except (KeyError, TypeError) as error:
        raise UserError(f"clip: {place / CONFIG_NAME}: has no model_cfg") from error
    return ClipSpec("folder", name, weights.name, weights.absolute())
