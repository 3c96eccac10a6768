"""A sweep: one training stage once for each combination of values, after what it needs."""

from __future__ import annotations

import itertools
import re

from base.errors import UserError
from slurm.config import PipelineConfig, TrainStage
from slurm.graph import ancestors

_NAMELESS = re.compile(r"[^\w.=+-]+")  # what a folder's name is better without


def sweep(
    config: PipelineConfig, name: str | None, settings: list[str]
) -> tuple[PipelineConfig, list[str]]:
    """The pipeline of the stages that `name` needs and of its variants; the variants' names.

    `settings` are texts such as "optim.lr=1e-4,3e-4"; several make all combinations. A variant's
    RUN lies beside the others, in a folder such as prior.optim.lr=1e-4.

    Raises:
        UserError: a text that is none, two variants of one name, no or no one training stage.
    """
    chosen = _chosen(config, name)
    stage = config.stages[chosen]
    assert isinstance(stage, TrainStage)
    keys, values = zip(*(_parse(text) for text in settings), strict=True)
    variants = {}
    for combination in itertools.product(*values):
        overrides = [f"{key}={value}" for key, value in zip(keys, combination, strict=True)]
        variant = f"{chosen}.{_NAMELESS.sub('-', ','.join(overrides).replace(',', '+'))}"
        if variant in variants:
            raise UserError(f"--sweep: two combinations are one folder, {variant}")
        changed = {"overrides": (*stage.overrides, *overrides)}
        variants[variant] = stage.model_copy(update=changed)
    needed = {
        each: config.stages[each] for each in config.stages if each in ancestors(config, chosen)
    }
    stages = {**needed, **variants}
    return config.model_copy(update={"stages": stages}), list(variants)


def _chosen(config: PipelineConfig, name: str | None) -> str:
    trained = [each for each, stage in config.stages.items() if isinstance(stage, TrainStage)]
    if name in trained:
        return str(name)
    if name is not None:
        raise UserError(f"--stage: got {name!r}, expected one of {', '.join(trained)}")
    if len(trained) != 1:
        raise UserError(f"--sweep: say which stage with --stage: {', '.join(trained)}")
    return trained[0]


def _parse(text: str) -> tuple[str, list[str]]:
    """The key and its values; commas within brackets part nothing."""
    key, equals, rest = text.partition("=")
    values, depth = [""], 0
    for letter in rest:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            values.append("")
        else:
            values[-1] += letter
    values = [value.strip() for value in values]
    if not equals or not key.strip() or not all(values):
        raise UserError(f"--sweep {text}: expected KEY=VALUE,VALUE such as optim.lr=1e-4,3e-4")
    return key.strip(), values
