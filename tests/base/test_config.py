"""Configs: what is accepted, and what a mistake is told by."""

import string
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError, field_validator

from base import yaml
from base.config import Config, dump_config, fingerprint, load_config, parse_config
from base.errors import UserError


@dataclass(frozen=True)
class Small:
    kind: Literal["small"] = "small"
    width: int = 3


@dataclass(frozen=True)
class Large:
    kind: Literal["large"]
    channels: tuple[int, ...] = (1, 2)
    ratio: float = 1.0


class Optim(Config):
    lr: float = Field(gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["constant", "cosine"] = "constant"


class Whole(Config):
    optim: Optim
    model: Annotated[Small | Large, Field(discriminator="kind")] = Small()
    out: Path | None = None
    name: str = "x"
    steps: int = 1
    data: tuple[str, ...] = ()
    tables: dict[str, Optim] = Field(default_factory=dict)
    fast: bool = False

    @field_validator("name")
    @classmethod
    def _short(cls, name: str) -> str:
        if len(name) > 40:
            raise ValueError(f"got {len(name)} characters, expected at most 40")
        return name


TEXT = """\
# a comment
optim:
  lr: 1e-4
  betas: [0.9, 0.95]
model:
  kind: large
  channels: [4, 5]
out: runs/x
data:
  - first
  - second
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "prior.yaml"
    path.write_text(TEXT)
    return path


def message(text: str, tmp_path: Path, *overrides: str) -> str:
    """The one line that loading `text` is refused with."""
    path = tmp_path / "prior.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(path, Whole, overrides)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_reads_every_kind_of_value(file: Path) -> None:
    config = load_config(file, Whole)
    assert config == Whole(
        optim=Optim(lr=1e-4, betas=(0.9, 0.95)),
        model=Large(kind="large", channels=(4, 5)),
        out=Path("runs/x"),
        data=("first", "second"),
    )


def test_the_config_cannot_be_changed(file: Path) -> None:
    config = load_config(file, Whole)
    with pytest.raises(ValidationError, match="frozen"):
        config.steps = 2


@pytest.mark.parametrize("written", ["1e-4", "1.0e-4", "0.0001", ".0001", "1E-4", "+1e-4"])
def test_numbers_as_people_write_them(written: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"optim: {{lr: {written}}}")
    assert load_config(path, Whole).optim.lr == 1e-4
    assert load_config(path, Whole, [f"optim.lr={written}"]).optim.lr == 1e-4


def test_a_whole_number_does_for_a_number(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("optim: {lr: 1}\nsteps: 1_000_000")
    config = load_config(path, Whole)
    assert (config.optim.lr, config.steps) == (1.0, 1_000_000)


@pytest.mark.parametrize("word", ["no", "on", "y", "12:30", "2026-01-01", "010", "0x1f"])
def test_words_stay_words(word: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"optim: {{lr: 1}}\nname: {word}")
    assert load_config(path, Whole).name == word


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "lr: 1e-4",
            "lr: fast",
            "optim.lr: got 'fast', expected a number; near line 3 of prior.yaml",
        ),
        ("lr: 1e-4", "lr: -1", "optim.lr: got -1, expected a value > 0.0; near line 3"),
        ("lr: 1e-4", "lr: true", "optim.lr: got true, expected a number; near line 3"),
        ("lr: 1e-4", "lr: .nan", "optim.lr: got nan, expected a finite number; near line 3"),
        ("lr: 1e-4", "lr: null", "optim.lr: got nothing, expected a number; near line 3"),
        ("lr: 1e-4", "lrr: 1e-4", "optim.lrr: unknown key; did you mean lr?; near line 3"),
        ("  lr: 1e-4\n", "", "optim.lr: missing, and it has no default; near line 2"),
        ("[0.9, 0.95]", "[0.9, x]", "optim.betas.1: got 'x', expected a number; near line 4"),
        ("[0.9, 0.95]", "[0.9]", "optim.betas.1: missing"),
        ("[0.9, 0.95]", "0.9", "optim.betas: got 0.9, expected a list; near line 4"),
        ("channels", "chanels", "model.chanels: unknown key; did you mean channels?; near line 7"),
        ("channels: [4, 5]", "width: 4", "model.width: unknown key; expected one of channels"),
        ("kind: large", "kind: huge", "model.kind: got 'huge', expected one of 'small', 'large'"),
        ("  kind: large\n", "", "model.kind: missing, and it has no default; near line 5"),
        ("out: runs/x", "out: 5", "out: got 5, expected text; near line 8 of prior.yaml"),
        ("- second", "- 2", "data.1: got 2, expected text; near line 11 of prior.yaml"),
        ("out: runs/x", "steps: 1.5", "steps: got 1.5, expected a whole number; near line 8"),
        ("out: runs/x", "fast: yes", "fast: got 'yes', expected true or false; near line 8"),
        ("out: runs/x", "optim: 5", "optim: given twice, in lines 2 and 8 of prior.yaml"),
        ("out: runs/x", "tables: {a: {lr: 1, beta: 2}}", "tables.a.beta: unknown key; did you me"),
        ("out: runs/x", f"name: {'y' * 50}", "name: got 50 characters, expected at most 40; near"),
        ("out: runs/x", "out: [", "prior.yaml: not YAML near line 10"),
        ("out: runs/x", "\tout: x", "prior.yaml: not YAML near line 8"),
        ("out: runs/x", "? [a, b]\n: c", "prior.yaml: not YAML"),
    ],
)
def test_mistakes(old: str, new: str, expected: str, tmp_path: Path) -> None:
    assert old in TEXT
    assert message(TEXT.replace(old, new), tmp_path).startswith(expected)


def test_a_schedule_has_words(tmp_path: Path) -> None:
    line = message(TEXT.replace("lr: 1e-4", "lr: 1\n  schedule: cosin"), tmp_path)
    assert line.startswith("optim.schedule: got 'cosin', expected 'constant' or 'cosine'; near lin")


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}"])
def test_an_empty_file_lacks_what_has_no_default(text: str, tmp_path: Path) -> None:
    assert message(text, tmp_path) == "optim: missing, and it has no default; in prior.yaml"


@pytest.mark.parametrize("text", ["[1, 2]", "hello", "5"])
def test_a_file_that_holds_no_keys(text: str, tmp_path: Path) -> None:
    assert message(text, tmp_path).endswith("expected keys and values")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.yaml: No such file or directory"):
        load_config(tmp_path / "absent.yaml", Whole)
    with pytest.raises(UserError, match="Is a directory"):
        load_config(tmp_path, Whole)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        load_config(tmp_path / "bytes.yaml", Whole)


def test_overrides(file: Path) -> None:
    config = load_config(
        file,
        Whole,
        [
            "optim.lr=2",
            "data.1=third",
            "model={kind: small, width: 9}",
            "tables.a.lr=3",
            "name=a=b",
        ],
    )
    assert (config.optim.lr, config.data) == (2.0, ("first", "third"))
    assert (config.model, config.name) == (Small(width=9), "a=b")
    assert config.tables == {"a": Optim(lr=3)}


def test_a_later_override_wins(file: Path) -> None:
    assert load_config(file, Whole, ["steps=3", "steps=4"]).steps == 4


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optim.lr=fast", "optim.lr: got 'fast', expected a number; in --set optim.lr=fast"),
        ("optim.lrr=1", "optim.lrr: unknown key; did you mean lr?; in --set optim.lrr=1"),
        ("optim={lr: fast}", "optim.lr: got 'fast', expected a number; in --set optim={lr: fast}"),
        ("optim", "--set optim: expected KEY=VALUE"),
        ("=1", "--set =1: expected KEY=VALUE"),
        ("a..b=1", "--set a..b=1: expected KEY=VALUE"),
        ("data.7=x", "--set data.7=x: got 7, expected an index below 2"),
        ("data.x=x", "--set data.x=x: got x, expected an index below 2"),
        ("optim.lr.deep=1", "--set optim.lr.deep=1: deep is inside 0.0001, which has no keys"),
        ("steps.deep=1", "steps: got keys and values, expected a whole number; in --set steps.dee"),
        ("optim.lr=[", "--set optim.lr=[: not YAML"),
    ],
)
def test_mistaken_overrides(override: str, expected: str, tmp_path: Path) -> None:
    assert message(TEXT, tmp_path, override).startswith(expected)


def test_an_override_hides_the_file_s_mistake(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(TEXT.replace("lr: 1e-4", "lr: fast"))
    assert load_config(path, Whole, ["optim.lr=1e-3"]).optim.lr == 1e-3


def test_plain_data_names_its_place() -> None:
    with pytest.raises(UserError, match=r"^steps: got 'x', expected a whole number; in the demo$"):
        parse_config({"optim": {"lr": 1}, "steps": "x"}, Whole, "the demo")


def test_plain_data_may_hold_configs_paths_and_tuples() -> None:
    config = parse_config(
        {"optim": Optim(lr=1), "model": Small(width=5), "out": Path("a"), "data": ("b",)},
        Whole,
        "x",
    )
    assert config == Whole(optim=Optim(lr=1), model=Small(width=5), out=Path("a"), data=("b",))


words = st.text(alphabet=string.printable + "äß→", max_size=40)
numbers = st.floats(min_value=1e-300, max_value=1e300)
optims = st.builds(
    Optim,
    lr=numbers,
    betas=st.tuples(numbers, numbers),
    schedule=st.sampled_from(["constant", "cosine"]),
)
configs = st.builds(
    Whole,
    optim=optims,
    model=st.one_of(
        st.builds(Small, width=st.integers()),
        st.builds(
            Large,
            kind=st.just("large"),
            channels=st.lists(st.integers(), max_size=3).map(tuple),
            ratio=st.floats(allow_nan=False, allow_infinity=False),
        ),
    ),
    out=st.none() | st.text("abc./", min_size=1).map(Path),
    name=words,
    steps=st.integers(),
    data=st.lists(words, max_size=3).map(tuple),
    tables=st.dictionaries(words, optims, max_size=2),
    fast=st.booleans(),
)


@given(configs)
def test_written_configs_read_back_equal(config: Whole) -> None:
    text = dump_config(config)
    data, lines = yaml.parse(text, "the test")
    again = parse_config(data, Whole, "the test")
    assert again == config
    assert fingerprint(again) == fingerprint(config)
    assert lines[("optim",)] == 1 + text.splitlines().index("optim:")


@given(st.from_regex(r"[-+]?[0-9._eExob:]{1,12}", fullmatch=True))
def test_text_that_looks_like_a_number_survives(text: str) -> None:
    assert yaml.parse(yaml.dump({"a": text}), "x")[0] == {"a": text}


def test_fingerprints() -> None:
    one = Whole(optim=Optim(lr=1e-4))
    assert fingerprint(one) == fingerprint(Whole(optim=Optim(lr=1e-4)))
    assert fingerprint(one) != fingerprint(Whole(optim=Optim(lr=2e-4)))
    assert fingerprint({"a": 1, "b": (1, Path("x"))}) == fingerprint({"b": [1, "x"], "a": 1})
    canonical = b'{"a":1,"b":[null,true,"\\u00e9"]}'
    assert fingerprint({"b": [None, True, "é"], "a": 1}) == sha256(canonical).hexdigest()
    with pytest.raises(TypeError, match="no JSON form for object"):
        fingerprint({"a": object()})
