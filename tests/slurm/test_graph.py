"""The graph of a pipeline: order, paths, commands, and what is refused."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from base.config import parse_config
from base.errors import UserError
from slurm.config import PipelineConfig
from slurm.graph import Node, build

ROOT = Path(__file__).resolve().parents[2]


def pipeline(stages: dict[str, Any], out: str = "/shared/run") -> PipelineConfig:
    return parse_config({"out": out, "stages": stages}, PipelineConfig, "test")


def nodes(tmp_path: Path, **stages: Any) -> dict[str, Node]:
    (tmp_path / "a.yaml").write_text("stage: prior\n")
    return {node.name: node for node in build(pipeline(stages), tmp_path)}


def trained(*data: str, **more: Any) -> dict[str, Any]:
    return {"kind": "train", "config": "a.yaml", "data": list(data), **more}


DATA = {"kind": "prepare", "inputs": ["pairs", "s3://bucket/table.parquet"]}
EMBED = {"kind": "embed", "data": "stages.data", "clip": "stages.clip"}


def test_names_become_paths_and_needs(tmp_path: Path) -> None:
    found = nodes(
        tmp_path,
        prior=trained("stages.vectors", clip="stages.clip", overrides=["optim.lr=1e-4"]),
        data=DATA,
        vectors=EMBED,
        clip=trained("stages.data"),
    )
    assert list(found) == ["data", "clip", "vectors", "prior"]
    assert found["prior"].needs == ("vectors", "clip")
    assert found["vectors"].makes == found["data"].makes == "/shared/run/data"
    assert found["prior"].command == (
        *("-m", "trainer", "train", "{frozen}/prior.yaml", "--set", "optim.lr=1e-4"),
        *("--set", 'out="/shared/run/prior"', "--set", 'data.paths=["/shared/run/data"]'),
        *("--set", 'clip="/shared/run/clip"'),
    )
    assert found["prior"].files == {"prior.yaml": "stage: prior\n"}
    assert found["data"].command == (
        *("-m", "data_pipeline", "prepare", str(tmp_path / "pairs"), "s3://bucket/table.parquet"),
        *("--out", "/shared/run/data", "--clip", "none"),
    )
    assert found["prior"].check == ("-m", "trainer", "checkpoint", "verify", "/shared/run/prior")


def test_a_run_is_begun_with_chosen_weights_of_another(tmp_path: Path) -> None:
    found = nodes(
        tmp_path,
        data=DATA,
        wide=trained("stages.data"),
        again=trained("stages.data", init_from="stages.wide@512:raw"),
    )
    assert found["again"].needs == ("data", "wide")
    assert 'init_from="/shared/run/wide@512:raw"' in found["again"].command


def test_a_cascade_is_written_with_the_runs_of_its_stages(tmp_path: Path) -> None:
    found = nodes(
        tmp_path,
        data=DATA,
        decoder=trained("stages.data"),
        up=trained("stages.data"),
        report={
            "kind": "evaluate",
            "data": "stages.data",
            "cascade": {"decoder": {"run": "stages.decoder"}, "upsamplers": [{"run": "stages.up"}]},
        },
    )
    assert found["report"].needs == ("data", "decoder", "up")
    text = found["report"].files["report.yaml"]
    assert "run: /shared/run/decoder" in text
    assert "- run: /shared/run/up" in text


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"a": trained("stages.b")}, r"stages\.a\.data: got stages\.b, expected one of a"),
        (
            {"a": trained("stages.b"), "b": trained("stages.a")},
            r"stages\.a\.data: stages\.b is of kind train, not prepare or embed",
        ),
        (
            {"d": DATA, "a": trained("stages.d", clip="stages.d")},
            r"stages\.a\.clip: stages\.d is of kind prepare, not train",
        ),
        (
            {
                "d": DATA,
                "a": trained("stages.d", clip="stages.b"),
                "b": trained("stages.d", clip="stages.a"),
            },
            "stages: a circle, a → b → a|stages: a circle, b → a → b",
        ),
        (
            {
                "d": DATA,
                "c": trained("stages.d"),
                "a": {"kind": "embed", "data": "stages.d", "clip": "stages.c"},
                "b": {"kind": "embed", "data": "stages.a", "clip": "ViT-B-32"},
            },
            r"stages\.b\.data: .*/d is embedded by stages\.a already",
        ),
        ({"a": trained("x", config="none.yaml")}, r"stages\.a\.config: .*none\.yaml"),
    ],
)
def test_what_cannot_be_run_is_told_in_one_line(
    tmp_path: Path, stages: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        nodes(tmp_path, **stages)


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, Any]:
    """Stages of all kinds without a circle, each naming earlier ones, in any order of the file."""
    stages: dict[str, Any] = {"s0": DATA}
    made: dict[str, list[str]] = {"prepare": ["s0"], "embed": [], "train": [], "evaluate": []}

    embedded: list[str] = []  # a second time would be refused

    def earlier(*kinds: str) -> str:
        names = [name for kind in kinds for name in made[kind]]
        return f"stages.{draw(st.sampled_from(names))}"

    for number in range(1, draw(st.integers(2, 10))):
        bare = [n for n in made["prepare"] if f"stages.{n}" not in embedded]
        kinds = ["prepare", "train", *(["evaluate"] if made["train"] else [])]
        kinds += ["embed"] if made["train"] and bare else []
        kind, name = draw(st.sampled_from(kinds)), f"s{number}"
        data = earlier("prepare", "embed")
        match kind:
            case "prepare":
                stages[name] = DATA
            case "embed":
                data = f"stages.{draw(st.sampled_from(bare))}"
                embedded.append(data)
                stages[name] = {"kind": kind, "data": data, "clip": earlier("train")}
            case "evaluate":
                cascade = {"clip": earlier("train"), "decoder": {"run": earlier("train")}}
                stages[name] = {"kind": kind, "data": data, "cascade": cascade}
            case _:
                fields = draw(st.sets(st.sampled_from(["clip", "init_from"])))
                more = {field: earlier("train") for field in fields if made["train"]}
                stages[name] = trained(data, **more)
        made[kind].append(name)
    return {name: stages[name] for name in draw(st.permutations(list(stages)))}


@given(stages=graphs())
@settings(max_examples=100, deadline=None)
def test_each_artefact_is_made_before_it_is_used(
    tmp_path_factory: pytest.TempPathFactory, stages: dict[str, Any]
) -> None:
    """By the names in the file, and by the paths in commands and configs."""
    found = nodes(tmp_path_factory.mktemp("graph"), **stages)
    assert set(found) == set(stages)
    made = [(node.kind == "embed", node.makes) for node in found.values()]
    assert len(set(made)) == len(made)
    before: dict[str, Node] = {}
    for name, node in found.items():
        named = set(re.findall(r"stages\.(s\d+)", str(stages[name])))
        assert set(node.needs) == named
        assert len(node.needs) == len(named)
        assert named <= before.keys()
        text = " ".join([*node.command, *node.files.values()])
        used = set(re.findall(r"/shared/run/s\d+", text)) - {node.makes}
        assert used <= {before[need].makes for need in node.needs}
        assert used or stages[name]["kind"] in ("prepare", "embed")
        before[name] = node


def test_the_pipelines_that_come_along_can_be_built() -> None:
    from base.config import load_config

    paths = sorted((ROOT / "configs/pipelines").glob("*.yaml"))
    assert paths
    for path in paths:
        config = load_config(path, PipelineConfig)
        assert len(build(config, path.parent)) == len(config.stages)
