"""The page on preparation knows every reason of rejection and every setting that it names."""

import re
from pathlib import Path

from base.config import parse_config
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


def test_the_example_of_rules_is_a_config() -> None:
    from base.yaml import parse

    for block in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.M):
        rules, _ = parse(block, "docs")
        assert isinstance(rules, dict)
        config = parse_config(rules, CurateConfig, "docs")
        assert CurateConfig().to_json().keys() == config.to_json().keys()
