"""The networks that the comparisons need beside a demo's own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from base.errors import UserError
from trainer.config import AnyTrainConfig
from trainer.loop import train
from trainer.record import CONFIG
from trainer.stages import load_train_config


class Extra(NamedTuple):
    """A run of its own: its name, whose config it has, and what is different in it."""

    name: str
    like: str
    settings: tuple[str, ...] = ()


EXTRAS = (
    Extra("ar_prior", "ar_prior"),
    Extra("up64_clean", "up64", ("objective.degradation.kind=none",)),
    Extra("decoder_text", "decoder", ("objective.condition=text_embedding",)),
    Extra("up256_clean", "up256", ("objective.degradation.kind=none",)),
)


def extra_config(
    extra: Extra, demo: Path, out: Path, configs: Path, settings: Sequence[str] = ()
) -> AnyTrainConfig:
    """What an extra run is trained by: the config of the demo's run, or of `configs` where the
    demo has none of the kind.

    Raises:
        UserError: neither is there.
    """
    own = demo / extra.like / CONFIG
    path = own if own.is_file() else configs / f"{extra.like}.yaml"
    paths = json.dumps([str((demo / "data" / "train").resolve())])
    places = [f"out={json.dumps(str(out / extra.name))}", f"data.paths={paths}"]
    if not extra.like.startswith("up"):
        places.append(f"clip={json.dumps(str((demo / 'clip').resolve()))}")
    return load_train_config(path, [*places, *extra.settings, *settings])


def train_extras(demo: Path, out: Path, configs: Path, names: Sequence[str]) -> None:
    """Train what is not trained; an interrupted run goes on.

    Raises:
        UserError: a name that is none, or what `trainer.loop.train` raises.
    """
    known = {extra.name: extra for extra in EXTRAS}
    for name in names:
        if name not in known:
            raise UserError(f"--extras: got {name!r}, expected some of {', '.join(known)}")
    for name in names:
        train(extra_config(known[name], demo, out, configs))
