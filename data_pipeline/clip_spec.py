"""What a CLIP string names, found without loading anything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from base.config import fingerprint
from base.errors import UserError
from base.files import read_json, sha256_file
from data_pipeline.schema.dataset import ClipInfo

FORMS = (
    "none, random:SEED, MODEL:WEIGHTS (an open_clip name and a file or tag), a RUN of stage clip, "
    "or a folder with open_clip_config.json and open_clip_model.safetensors"
)
CONFIG = "open_clip_config.json"
_EXPORT = Path("exports") / "open_clip"
_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


@dataclass(frozen=True)
class ClipSpec:
    """A CLIP's parts by kind: random weights by seed, a folder of open_clip's, a named model."""

    kind: Literal["random", "folder", "named"]
    model: str  # for the record; of a named model, open_clip's name
    label: str  # for the record: seed, file name or tag
    weights: Path | None = None  # None: random, or a tag that open_clip fetches

    def is_for(self, info: ClipInfo) -> bool:
        """Whether `info` records these weights; False also when that is not known yet."""
        if (self.model, self.label) != (info.model, info.pretrained):
            return False
        if self.weights is None:
            return self.kind == "random"
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
    folder = Path(text)
    if folder.is_dir():
        return _find_folder(folder)
    model, colon, weights = text.partition(":")
    if not colon or not model or not weights:
        raise UserError(f"clip: got {text!r}, which is no folder; expected {FORMS}")
    path = Path(weights)
    if path.is_file():
        return ClipSpec("named", model, path.name, path.absolute())
    return ClipSpec("named", model, weights)


def _find_folder(folder: Path) -> ClipSpec:
    place = next((p for p in (folder, folder / _EXPORT) if (p / CONFIG).is_file()), None)
    if place is None:
        raise UserError(
            f"clip: {folder} holds neither {CONFIG} nor {_EXPORT} (a finished RUN of stage clip)"
        )
    weights = next((place / name for name in _WEIGHTS if (place / name).is_file()), None)
    if weights is None:
        raise UserError(f"clip: {place} has no {_WEIGHTS[0]}")
    config = read_json(place / CONFIG)
    try:
        name = f"custom-{fingerprint(config['model_cfg'])[:12]}"
    except (KeyError, TypeError) as error:
        raise UserError(f"clip: {place / CONFIG}: has no model_cfg") from error
    return ClipSpec("folder", name, weights.name, weights.absolute())
