"""`unclip data curate` and `stats` as people type them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

RULES = """\
prefer: score
thresholds:
  score: {max: 0.9, nulls: keep}
captions: {languages: [en, fr]}
exact_duplicates: true
phash_duplicates: {distance: 6}
split: {val: 0.3}
"""


def data(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "data_pipeline", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


TABLE = """\
rule                dropped  left  of input
(input)                        40
thresholds.score          7    33     17.5%
captions.languages        7    26     17.5%
exact_duplicates          1    25      2.5%
phash_duplicates          1    24      2.5%
(kept)                   16    24     60.0%
DATASET/selections/clean.parquet: 24 of 40 rows
DATASET/selections/clean-train.parquet: 18 rows
DATASET/selections/clean-val.parquet: 6 rows
24 groups of like pictures, 1 rows in the largest; none is on both sides
"""


def test_the_account_of_a_selection(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(RULES)
    rules = ["--config", tmp_path / "rules.yaml", "--set", "phash_duplicates.distance=4"]
    done = data("curate", dataset, *rules, "--as", "clean")
    assert done.returncode == 0, done.stderr
    shown = [line.rstrip() for line in done.stdout.replace(str(dataset), "DATASET").splitlines()]
    assert "\n".join(shown) + "\n" == TABLE
    again = json.loads(data("curate", dataset, *rules, "--as", "clean", "--json").stdout)
    assert not again["made"]
    assert again["kept"] + sum(rule["dropped"] for rule in again["rules"]) == again["input"]
    other = data("curate", dataset, "--as", "clean")
    assert other.returncode == 2
    assert other.stderr.count("\n") == 1
    assert other.stderr.startswith("error: ")
    assert "--replace" in other.stderr
    replaced = data("curate", dataset, "--as", "clean", "--replace", "--json")
    assert json.loads(replaced.stdout)["made"]


STATS = """\
DATASET: 40 of 56 rows

min p05 median p95 max mean
original_width 80 80 96 96 96 94
original_height 32 32 64 64 64 57.9
aspect 1.33 1.33 1.5 3 3 1.741
width 64 64 64 64 64 64
height 64 64 64 64 64 64
caption_chars 3 5 39 47 49 32.75
caption_words 1 1 8 9 9 6.225

same bytes as an earlier row 5
same perceptual hash as an earlier row 5

source, of 3 rows share
flickr.com 19 47.5%
example.org 9 22.5%
i.pinimg.com 8 20.0%

without an address: 4

rejected for rows share
not_an_image 16 28.6%
"""


def test_statistics_on_a_terminal_and_in_a_file(dataset: Path, tmp_path: Path) -> None:
    done = data("stats", dataset, "--plot", tmp_path / "a.svg")
    assert done.returncode == 0, done.stderr
    shown = [line.rstrip() for line in done.stdout.replace(str(dataset), "DATASET").splitlines()]
    shown = [" ".join(line.split()) for line in shown]
    shown = [line for line in shown if not line.startswith("similarity")]  # of this machine
    assert "\n".join(shown) + "\n" == STATS
    assert (tmp_path / "a.svg").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["curate", "{data}", "--as", "a", "--set", "caps.tagg=3"], 2, "caps.tagg: got 'tagg'"),
        (["curate", "{data}", "--as", "a", "--set", "capz.tag=3"], 2, "did you mean caps?"),
        (["curate", "{data}", "--as", "a", "--set", "captions.keep_regex=(?=a)"], 2, "RE2"),
        (["curate", "{data}", "--as", "a", "--set", "thresholds.score.min=9"], 3, "leave none of"),
        (["curate", "{data}", "--as", "a", "--config", "no.yaml"], 2, "no.yaml"),
        (["curate", "{data}"], 2, "--as"),
        (["curate", "{data}/shards", "--as", "a"], 2, "not a DATASET"),
        (["stats", "{data}/shards"], 2, "not a DATASET"),
        (["stats", "{data}", "--plot", "a.gif"], 2, "a file named .png, .svg, .pdf"),
        (["stats", "{data}", "--selection", "b"], 2, "it has none"),
    ],
)
def test_mistakes_are_one_line(made: Path, arguments: list[str], code: int, message: str) -> None:
    ended = data(*(argument.format(data=made) for argument in arguments))
    assert ended.returncode == code, ended.stderr
    assert message in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("error: ")
    assert sum(line.startswith("error") for line in ended.stderr.splitlines()) == 1
    assert ended.stdout == ""


def test_curating_loads_no_torch_and_no_ray(dataset: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from data_pipeline import cli;"
        "assert not {'numpy', 'pyarrow', 'faiss'} & set(sys.modules);"
        "from data_pipeline.curate.run import curate;"
        "from data_pipeline.stats.collect import collect;"
        f"curate(Path({str(dataset)!r}), 'a'); collect([Path({str(dataset)!r})], 'a');"
        "assert not {'torch', 'ray', 'faiss'} & set(sys.modules), sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
