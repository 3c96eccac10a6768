"""The names by which users refer to a CLIP: how data preparation and training read them."""

from __future__ import annotations

from pathlib import Path

# What open_clip's own `local-dir:` mechanism looks for in a folder.
CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
EXPORT = Path("exports") / "open_clip"  # in a RUN of stage clip that has finished


def find_export(folder: Path) -> Path | None:
    """The folder in open_clip's form that `folder` is, or that the RUN `folder` holds."""
    return next((p for p in (folder, folder / EXPORT) if (p / CONFIG_NAME).is_file()), None)


def split_named(text: str) -> tuple[str, str] | None:
    """MODEL:WEIGHTS as its two parts: an open_clip name, and a file or a tag."""
    model, _, weights = text.partition(":")
    return (model, weights) if model and weights else None


def find_weights(text: str) -> Path | None:
    """The file of the weights that a folder, a RUN or MODEL:FILE refers to, if there is one."""
    export, named = find_export(Path(text)), split_named(text)
    if export is not None:
        return next((export / name for name in WEIGHTS_NAMES if (export / name).is_file()), None)
    return Path(named[1]) if named is not None and Path(named[1]).is_file() else None
