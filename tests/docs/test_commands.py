"""The documents say nothing that the command does not know: commands, options, links, files."""

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from unclip.cli import SUB_COMMANDS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


_MODULES = {"unclip": ["unclip"], "data_pipeline": ["unclip", "data"], "trainer": ["unclip"]}


class Line(NamedTuple):
    """A command line of a document."""

    page: str
    number: int
    words: list[str]

    def __str__(self) -> str:
        return f"{self.page}:{self.number}"


def command_lines(text: str, page: str) -> Iterator[Line]:
    """The `unclip` and `make` lines of a page's bash blocks, continued lines joined."""
    for block in re.finditer(r"^```(?:bash|sh|shell|console)\n(.*?)^```", text, re.DOTALL | re.M):
        first = text[: block.start(1)].count("\n") + 1
        rows = block[1].split("\n")
        while rows:
            number, row = first, rows.pop(0)
            first += 1
            while row.endswith("\\") and rows:
                row = row[:-1] + rows.pop(0)
                first += 1
            words = _words(row)
            if words and words[0] in ("unclip", "make"):
                yield Line(page, number, words)


def _words(row: str) -> list[str]:
    """The words of the command that a row runs, without prompt, variables, launcher and pipe."""
    words = shlex.split(row.removeprefix("$ "), comments=True)
    for end in ("|", ">", "&&", ";", "2>"):
        words = words[: words.index(end)] if end in words else words
    if "-m" in words[:-1]:  # python -m trainer train ..., alone or under torchrun
        at = words.index("-m")
        words = [*_MODULES.get(words[at + 1], [words[at + 1]]), *words[at + 2 :]]
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    return [Path(words[0]).name, *words[1:]] if words else []


LINES = [
    line for page in PAGES for line in command_lines(page.read_text(), str(page.relative_to(ROOT)))
]


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """The innermost command that `words` (without "unclip") names, and what is left of them."""
    sub = next((sub for sub in SUB_COMMANDS if sub.name == words[0]), None)
    assert sub is not None, f"unclip has no sub-command {words[0]}"
    command: Any = typer.main.get_command(importlib.import_module(sub.module).app)
    rest = words if sub.nested else words[1:]
    while hasattr(command, "commands"):
        assert rest, f"unclip {' '.join(words)} lacks a sub-command"
        assert rest[0] in command.commands, f"no sub-command {rest[0]} of {command.name}"
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


def check(words: list[str]) -> None:
    """Fails when the command would not understand its line."""
    if not words or words[0] in ("--help", "--version"):
        return
    command, rest = command_of(words)
    if rest == ["--help"]:
        return
    # The parser alone: it knows the options, and looks at no value and no file.
    context = command.context_class(command, info_name=command.name)
    values, left, _ = command.make_parser(context).parse_args(
        args=[w for w in rest if w != "--debug"]
    )
    assert not left, f"{left} left over"
    for parameter in command.params:
        given = values.get(parameter.name)
        missing = given is None or given == () or "UNSET" in repr(given)
        assert not (parameter.required and missing), f"{parameter.name} is missing"


@pytest.mark.parametrize("line", [line for line in LINES if line.words[0] == "unclip"], ids=str)
def test_commands_are_understood(line: Line) -> None:
    check(line.words[1:])


def examples(name: str, command: Any) -> Iterator[tuple[str, str]]:
    """The example command lines in the help of a command and of those inside it."""
    for inner, below in getattr(command, "commands", {}).items():
        yield from examples(f"{name} {inner}", below)
    for text in (command.help or "", command.epilog or ""):
        for found in re.finditer(r"(?:Examples?: |Try it: |[;·] |`)(unclip [^`;\n·]+)", text):
            yield name, found[1].strip()


EXAMPLES = [
    example
    for module in sorted({sub.module for sub in SUB_COMMANDS})
    for example in examples(module, typer.main.get_command(importlib.import_module(module).app))
]


@pytest.mark.parametrize(("command", "example"), EXAMPLES)
def test_examples_in_help_are_understood(command: str, example: str) -> None:
    check(shlex.split(example)[1:])


def test_every_command_has_an_example() -> None:
    assert {command for command, _ in EXAMPLES} >= {"data_pipeline.cli synth", "unclip.doctor"}


@pytest.mark.parametrize("line", [line for line in LINES if line.words[0] == "make"], ids=str)
def test_make_targets_exist(line: Line) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    wanted = {word for word in line.words[1:] if "=" not in word}
    assert wanted <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.M)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{target} is not there"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_configs_that_are_named_exist(page: Path) -> None:
    for name in set(re.findall(r"\bconfigs/[\w/.-]+\.yaml\b", page.read_text())):
        assert (ROOT / name).is_file(), f"{name} is not there"


def test_the_readme_begins_with_the_two_commands() -> None:
    lines = [" ".join(line.words) for line in LINES if line.page == "README.md"]
    assert lines[:2] == ["make demo", "make test"]


def test_finds_commands_in_pages() -> None:
    block = "```bash\n# a\n$ unclip data synth out \\\n  --count 5 | tee log\nls\n```\n"
    found = list(command_lines(f"\n{block}```text\nunclip x\n```\n", "page"))
    assert found == [Line("page", 4, ["unclip", "data", "synth", "out", "--count", "5"])]


@pytest.mark.parametrize(
    "words", ["doctor --jsn", "doctor extra", "dcotor", "data", "data synht out", "data synth"]
)
def test_sees_what_the_command_would_refuse(words: str) -> None:
    with pytest.raises(Exception, match=r"No such option|left over|no sub-command|lacks|missing"):
        check(words.split())
