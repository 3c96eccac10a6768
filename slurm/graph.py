"""The stages as a graph: who needs whom, what each makes, and with which command."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from base import yaml
from base.config import fingerprint
from base.errors import UserError
from slurm.config import (
    EmbedStage,
    EvaluateStage,
    PipelineConfig,
    PrepareStage,
    TrainStage,
)

_REFERENCE = re.compile(r"stages\.([^@:]*)((?:[@:].*)?)", re.DOTALL)  # a name, @SAMPLES:WEIGHTS


@dataclass(frozen=True)
class Node:
    """A stage, ready to be run anywhere."""

    name: str
    kind: str
    needs: tuple[str, ...]  # stages, each once, in the file's order
    makes: str  # the path of a DATASET, a RUN or a report's folder
    command: tuple[str, ...]  # after the interpreter
    check: tuple[str, ...] | None  # the same; its exit code tells whether `makes` is whole
    files: Mapping[str, str]  # texts that the command reads: path below the frozen folder → text
    fingerprint: str  # of what decides the result: command, texts, those of its needs; no resources


def build(config: PipelineConfig, here: Path) -> list[Node]:
    """The stages, each after those that it needs. `here`: the folder of the pipeline's file.

    A command's word `{frozen}` stands for the folder that `files` are written to.

    Raises:
        UserError: a name that no stage has, the wrong kind of stage, a circle, a missing config,
            two stages that embed one DATASET.
    """
    found = {name: _references(name, config) for name in config.stages}
    for name, needs in found.items():
        for field, need in needs:
            _require_known(config, name, field, need)
    order = _ordered({name: [need for _, need in needs] for name, needs in found.items()})
    maker, nodes = _Maker(config, here), dict[str, Node]()
    for name in order:
        nodes[name] = maker.node(name, {need: nodes[need] for _, need in found[name]})
        _require_sole(nodes[name], nodes.values())
    return list(nodes.values())


def ancestors(config: PipelineConfig, name: str) -> set[str]:
    """All stages that one needs, and those that these need.

    Raises:
        UserError: a name that no stage has.
    """
    found, left = set[str](), [name]
    while left:
        stage = left.pop()
        for field, need in _references(stage, config):
            _require_known(config, stage, field, need)
            left += [] if need in found else [need]
            found.add(need)
    return found


def _require_sole(node: Node, nodes: Iterable[Node]) -> None:
    """One embedding of a DATASET takes the place of another."""
    for other in nodes:
        if node.kind == other.kind == "embed" and node.makes == other.makes and node is not other:
            raise UserError(
                f"stages.{node.name}.data: {node.makes} is embedded by stages.{other.name} already"
            )


def _require_known(config: PipelineConfig, name: str, field: str, need: str) -> None:
    where = f"stages.{name}.{field}"
    if need not in config.stages:
        known = ", ".join(config.stages)
        raise UserError(f"{where}: got stages.{need}, expected one of {known}")
    kind = config.stages[need].kind
    expected = ("prepare", "embed") if field == "data" else ("train",)
    if kind not in expected:
        raise UserError(f"{where}: stages.{need} is of kind {kind}, not {' or '.join(expected)}")


def _references(name: str, config: PipelineConfig) -> list[tuple[str, str]]:
    """(field, stage) of all that a stage names; a field is the first part of its path."""
    stage = config.stages[name].model_dump(exclude={"resources", "verify", "kind", "overrides"})
    return [(field, need) for field, value in stage.items() for need in _within(value)]


def _within(value: Any) -> Iterable[str]:
    if isinstance(value, str) and (match := _REFERENCE.fullmatch(value)):
        yield match[1]
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _within(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _within(inner)


def _ordered(needs: Mapping[str, Iterable[str]]) -> list[str]:
    """Names so that each comes after its needs, otherwise in the file's order."""
    sorter = TopologicalSorter(needs)
    try:
        sorter.prepare()
    except CycleError as error:
        circle = " → ".join(reversed(error.args[1]))
        raise UserError(f"stages: a circle, {circle}: none of them can be the first") from None
    place, order = {name: n for n, name in enumerate(needs)}, list[str]()
    while sorter.is_active():
        ready = sorted(sorter.get_ready(), key=place.__getitem__)
        order += ready
        sorter.done(*ready)
    return order


class _Maker:
    """Nodes of one pipeline."""

    def __init__(self, config: PipelineConfig, here: Path) -> None:
        self._config, self._here = config, here
        self._out = Path(config.out).absolute()

    def node(self, name: str, needs: Mapping[str, Node]) -> Node:
        stage = self._config.stages[name]
        match stage:
            case PrepareStage():
                command, files = self._prepare(name, stage), self._copied(name, stage.config)
            case EmbedStage():
                words = ("data_pipeline", "embed", self._path(stage.data))
                command, files = (*words, "--clip", self._path(stage.clip)), {}
            case TrainStage():
                command, files = self._train(name, stage), self._copied(name, stage.config)
            case EvaluateStage():
                command = self._evaluate(name, stage)
                files = {f"{name}.yaml": yaml.dump(self._resolved(stage.cascade))}
        return Node(
            name=name,
            kind=stage.kind,
            needs=tuple(needs),
            makes=self._makes(name),
            command=("-m", *command),
            check=self._check(name) if stage.verify else None,
            files=files,
            fingerprint=fingerprint(
                [command, sorted(files.items()), [node.fingerprint for node in needs.values()]]
            ),
        )

    def _prepare(self, name: str, stage: PrepareStage) -> tuple[str, ...]:
        inputs = [text if "://" in text else str(self._at(text)) for text in stage.inputs]
        config = () if stage.config is None else ("--config", _frozen(name))
        where = ("--out", self._makes(name), "--clip", self._path(stage.clip))
        return ("data_pipeline", "prepare", *inputs, *where, *config)

    def _train(self, name: str, stage: TrainStage) -> tuple[str, ...]:
        values = {
            "out": self._makes(name),
            "data.paths": [self._path(each) for each in stage.data],
            **({} if stage.clip is None else {"clip": self._path(stage.clip)}),
            **({} if stage.init_from is None else {"init_from": self._path(stage.init_from)}),
        }
        given = [*stage.overrides, *(f"{key}={json.dumps(value)}" for key, value in values.items())]
        words = [word for override in given for word in ("--set", override)]
        return ("trainer", "train", _frozen(name), *words)

    def _evaluate(self, name: str, stage: EvaluateStage) -> tuple[str, ...]:
        count = () if stage.count is None else ("--count", str(stage.count))
        words = ("trainer", "evaluate", _frozen(name), "--data", self._path(stage.data))
        return (*words, "--out", self._makes(name), *count)

    def _check(self, name: str) -> tuple[str, ...] | None:
        made = self._makes(name)
        match self._config.stages[name].kind:
            case "prepare" | "embed":
                return ("-m", "data_pipeline", "verify", made)
            case "train":
                return ("-m", "trainer", "checkpoint", "verify", made)
        return None

    def _makes(self, name: str) -> str:
        stage = self._config.stages[name]
        if isinstance(stage, EmbedStage):
            return self._path(stage.data)
        return str(self._out / name)

    def _path(self, text: str) -> str:
        """What a stage makes, or the text itself: an address, a CLIP's name, a path."""
        match = _REFERENCE.fullmatch(text)
        return text if match is None else self._makes(match[1]) + match[2]

    def _resolved(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._path(value)
        if isinstance(value, Mapping):
            return {key: self._resolved(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._resolved(inner) for inner in value]
        return value

    def _copied(self, name: str, config: str | None) -> dict[str, str]:
        if config is None:
            return {}
        path = self._at(config)
        try:
            return {f"{name}.yaml": path.read_text(encoding="utf-8")}
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"stages.{name}.config: {path}: cannot be read ({error})") from error

    def _at(self, path: str) -> Path:
        """Paths of the pipeline's file are those below its own folder."""
        return Path(path) if Path(path).is_absolute() else (self._here / path).absolute()


def _frozen(name: str) -> str:
    return f"{{frozen}}/{name}.yaml"
