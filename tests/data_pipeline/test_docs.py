"""The page on preparation knows every reason, setting and option, with an example of each."""

import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel

from base.config import parse_config
from base.yaml import parse
from data_pipeline.cli import app
from data_pipeline.config import EmbedConfig, PrepareConfig
from data_pipeline.curate.config import (
    CaptionConfig,
    CurateConfig,
    EmbeddingConfig,
    PhashConfig,
    SplitConfig,
    Threshold,
)
from data_pipeline.schema.dataset import REASONS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text()


def test_every_reason_is_in_the_table_with_its_meaning() -> None:
    section = PAGE.partition("\n## Why rows are rejected\n")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", section, re.M))
    assert rows == dict(REASONS)


def test_settings_in_commands_exist() -> None:
    named = set(re.findall(r"--set (\w+)[.=]", PAGE))
    assert named
    configs = (PrepareConfig, EmbedConfig, CurateConfig)
    assert named <= {name for config in configs for name in config.model_fields}


def test_every_rule_of_curation_is_described() -> None:
    section = PAGE.partition("\n## Curation\n")[2].partition("\n## ")[0]
    for config in (
        CurateConfig,
        CaptionConfig,
        Threshold,
        PhashConfig,
        EmbeddingConfig,
        SplitConfig,
    ):
        for name, field in config.model_fields.items():
            assert re.search(rf"\b{field.alias or name}\b", section), name


def yaml_blocks() -> dict[str, dict[str, object]]:
    """The page's YAML files, by the name in their first line."""
    found = {}
    for name, block in re.findall(r"^```yaml\n# ([\w.]+)\n(.*?)^```", PAGE, re.DOTALL | re.M):
        values, _ = parse(block, name)
        assert isinstance(values, dict)
        found[name] = values
    return found


def test_the_examples_of_files_are_configs() -> None:
    blocks = yaml_blocks()
    assert blocks.keys() == {"strict.yaml", "rules.yaml"}
    parse_config(blocks["strict.yaml"], PrepareConfig, "docs")
    config = parse_config(blocks["rules.yaml"], CurateConfig, "docs")
    assert CurateConfig().to_json().keys() == config.to_json().keys()


def commands(kinds: str) -> list[list[str]]:
    """The words after `unclip data` of every such line in the page's blocks of these kinds."""
    found = []
    for block in re.findall(rf"^ *```(?:{kinds})\n(.*?)^ *```", PAGE, re.DOTALL | re.M):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.strip().removeprefix("$ "), comments=True)
            if words[:2] == ["unclip", "data"]:
                found.append(words[2:])
    return found


# What a page cannot run, as it needs a cluster or another environment: which test does.
RUN_ELSEWHERE = {
    "--ray-address": ("test_killed.py", 'running(corpus, out, CLIP, "--ray-address"'),
    "index": ("test_index.py", "build("),
}


def test_every_option_has_an_example() -> None:
    """Bash blocks are run by tests/docs/test_run.py; console blocks are only to be read."""
    run = {(words[0], word) for words in commands("bash") for word in words[1:]}
    shown = {(words[0], word) for words in commands("console") for word in words[1:]}
    command: Any = typer.main.get_command(app)
    for name, inner in command.commands.items():
        for option in (o for parameter in inner.params for o in parameter.opts):
            if option.startswith("--") and option != "--help":
                elsewhere = {name, option} & RUN_ELSEWHERE.keys()
                assert (name, option) in (shown if elsewhere else run), f"{name} {option}"


@pytest.mark.parametrize(("file", "does"), RUN_ELSEWHERE.values())
def test_what_the_page_cannot_run_is_run_by_a_test(file: str, does: str) -> None:
    assert does in (Path(__file__).parent / file).read_text()


def test_every_setting_has_an_example() -> None:
    given = {word.partition("=")[0] for words in commands("bash") for word in settings(words)}
    for values in yaml_blocks().values():
        given |= set(flat(values))
    wanted = {*fields(PrepareConfig), *fields(EmbedConfig), *fields(CurateConfig)}
    wanted |= {f"captions.{name}" for name in fields(CaptionConfig)}
    lacking = {name for name in wanted if not any(is_of(one, name) for one in given)}
    assert not lacking


def settings(words: list[str]) -> Iterator[str]:
    """What follows each `--set`."""
    return (after for word, after in pairwise(words) if word == "--set")


def flat(values: dict[str, object], prefix: str = "") -> Iterator[str]:
    """The names of nested values, with dots."""
    for name, value in values.items():
        yield prefix + name
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")


def fields(config: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The names of a config's values, with dots; those that hold others are none."""
    for name, field in config.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from fields(kind, f"{prefix}{name}.")
        else:
            yield prefix + name


def is_of(given: str, name: str) -> bool:
    """Whether a setting is the field, or one of those that the field may hold."""
    return given == name or given.startswith(f"{name}.")
