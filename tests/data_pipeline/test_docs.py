"""The page on preparation knows every reason of rejection and every setting that it names."""

import re
from pathlib import Path

from data_pipeline.config import EmbedConfig, PrepareConfig
from data_pipeline.schema.dataset import REASONS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text()


def test_every_reason_is_in_the_table_with_its_meaning() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", PAGE, re.M))
    assert rows == dict(REASONS)


def test_settings_in_commands_exist() -> None:
    named = set(re.findall(r"--set (\w+)[.=]", PAGE))
    assert named
    assert named <= {*PrepareConfig.model_fields, *EmbedConfig.model_fields}
