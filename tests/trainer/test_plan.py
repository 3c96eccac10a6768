"""`unclip plan` against what real runs compute and allocate, at small sizes."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from subprocess import Popen

import numpy as np
import pytest
import toy
from planned import ALONE, allocated, tensors, upsampler
from safetensors.torch import save_file
from stages import CONFIGS, STAGES

from base.clip_reference import CONFIG_NAME, EXPORT, WEIGHTS_NAMES
from base.errors import UserError
from trainer.batch import Batch, Needs
from trainer.loader.samples import SampleReader
from trainer.models import prior
from trainer.models.clip import Clip, describe_for_open_clip, weights_for_open_clip
from trainer.planning.outline import Kind, flops_per_sample, outline
from trainer.planning.plan import make_plan
from trainer.planning.show import describe, parse_bytes
from trainer.stages import load_train_config

SOAK = os.environ.get("UNCLIP_SOAK")
ENGINES = [
    ("local", "fp32"),
    ("local", "bf16"),
    ("zero 1", "fp32"),
    ("zero 1", "bf16"),
]
if SOAK:
    ENGINES += [(f"zero {stage}", kind) for stage in (0, 2, 3) for kind in ("fp32", "bf16")]


@pytest.mark.parametrize(("engine", "precision"), ENGINES)
def test_memory_is_what_a_real_run_allocates(
    deepspeed_ready: None, engine: str, precision: str
) -> None:
    kind = ["train.engine=local"]
    if engine != "local":
        kind = ["train.engine=deepspeed", f"train.zero_stage={engine[-1]}"]
    config = upsampler(f"train.precision={precision}", *kind)
    plan = make_plan(config, ALONE)
    (option,) = [option for option in plan.options if option.engine == engine]
    assert option.chosen
    assert option.host == 0
    assert option.memory.total == pytest.approx(allocated(config), rel=0.1)


OFFLOADED = [1, 2, 3] if SOAK else [2]


@pytest.mark.parametrize("stage", OFFLOADED)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_state_in_the_host_s_memory_is_what_a_real_run_allocates(
    deepspeed_ready: None, stage: int, precision: str
) -> None:
    """On a CPU both memories are one."""
    kind = [f"train.precision={precision}", f"train.zero_stage={stage}"]
    config = upsampler("train.engine=deepspeed", "train.offload=optimizer", *kind)
    (option,) = [option for option in make_plan(config, ALONE).options if option.chosen]
    assert option.memory.moments == option.memory.ema == 0
    assert option.memory.total + option.host == pytest.approx(allocated(config), rel=0.1)


@pytest.mark.skipif(not SOAK, reason="set UNCLIP_SOAK: two ranks, fourteen cases")
def test_memory_of_two_ranks_is_what_they_allocate(
    torchrun: Callable[[int, Path, Sequence[object]], str], tmp_path: Path
) -> None:
    kinds = ("fp32", "bf16")
    cases = [f"{stage}:{kind}:none" for stage in range(4) for kind in kinds]
    cases += [f"{stage}:{kind}:optimizer" for stage in (1, 2, 3) for kind in kinds]
    torchrun(2, Path(__file__).with_name("planned.py"), [tmp_path / "report", *cases])
    for rank in range(2):
        report = json.loads((tmp_path / f"report.{rank}").read_text())
        assert list(report) == cases
        for case, (planned, found) in report.items():
            assert planned == pytest.approx(found, rel=0.1), (rank, case)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_that_are_computed_again_are_what_a_real_run_allocates(precision: str) -> None:
    more = ["train.engine=local", f"train.precision={precision}"]
    kept, again = (
        upsampler(f"train.checkpoint_activations={value}", *more) for value in ("false", "true")
    )
    plans = [make_plan(config, ALONE) for config in (kept, again)]
    assert plans[0].flops == plans[1].flops  # what is computed twice is no progress
    activations = [plan.options[0].memory.activations for plan in plans]
    assert activations[1] < 0.8 * activations[0]
    assert plans[1].options[0].memory.total == pytest.approx(allocated(again), rel=0.1)


def test_attention_that_is_computed_again_is_planned() -> None:
    """The same kernel both times, or as many tensors would not be kept."""
    activations = {}
    for again in ("false", "true"):
        config = load_train_config(
            CONFIGS / "prior.yaml", [f"train.checkpoint_activations={again}", "model.layers=4"]
        )
        activations[again] = make_plan(config, replace(ALONE, kind="cuda")).options[0].memory
    assert activations["true"].activations < 0.8 * activations["false"].activations


def test_copies_of_saves_are_in_the_host_s_memory() -> None:
    plan = make_plan(upsampler("train.async_save=true", "ema.powers=[0.05]"), ALONE)
    assert {option.host for option in plan.options} == {(4 + 8 + 2 * 4) * plan.parameters}
    more = ["train.async_save=true", "ema.powers=[0.05]", "ema.snapshot_every=64"]
    plan = make_plan(upsampler(*more), ALONE)
    assert {option.host for option in plan.options} == {(4 + 8 + 3 * 4) * plan.parameters}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that open_clip loads: the micro CLIP with random weights."""
    folder = tmp_path_factory.mktemp("plan") / "clip"
    config = load_train_config(CONFIGS / "clip.yaml").model
    (folder / EXPORT).mkdir(parents=True)
    (folder / EXPORT / CONFIG_NAME).write_text(json.dumps(describe_for_open_clip(config)))
    weights = weights_for_open_clip(Clip(config).state_dict())
    save_file(weights, folder / EXPORT / WEIGHTS_NAMES[0])
    return folder


@pytest.mark.parametrize("name", ["clip", "prior", "decoder"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_memory_of_other_stages_is_what_a_real_run_allocates(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, precision: str
) -> None:
    """Frozen text towers, tokens and a contrastive loss among them; captions fill their context."""
    monkeypatch.setattr(prior, "without_padding", lambda states, mask: (states, mask))
    if (name, precision) == ("clip", "bf16"):
        pytest.skip("a ResNet's batch norms are not for bf16")
    data = toy.write_dataset(tmp_path / "data", [40, 40], 64, dim=16)
    more = [f"data.paths=[{data}]", f"train.precision={precision}", "train.engine=local"]
    more += ["train.batch=64", "train.micro_batch=32", "train.async_save=false"]
    more += [f"clip={clip}"] if name != "clip" else []
    config = load_train_config(CONFIGS / f"{name}.yaml", more)

    def batches(needs: Needs) -> list[Batch]:
        reader = SampleReader(config.data, needs, 0)
        return [reader.batch(np.arange(32) + first) for first in (0, 32)]

    (option,) = [option for option in make_plan(config, ALONE).options if option.chosen]
    assert option.memory.activations > 0.1 * option.memory.total
    assert option.memory.total == pytest.approx(allocated(config, batches), rel=0.1)


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_every_stage_is_planned_without_its_data_and_its_clip(name: str, kind: Kind) -> None:
    """The CLIP that prior and decoder name is not there; FLOPs are those of the real arithmetic."""
    before = set(tensors())
    config = load_train_config(CONFIGS / f"{name}.yaml")
    plan = make_plan(config, replace(ALONE, gpus=2, kind=kind))
    assert [option.engine for option in plan.options] == [f"zero {stage}" for stage in range(4)]
    assert {option.fits for option in plan.options} == {True}
    assert plan.parameters > 0
    assert (plan.frozen > 0) == (name in ("prior", "ar_prior", "decoder"))
    memory = [option.memory for option in plan.options]
    assert memory[0].moments == 8 * plan.parameters
    assert memory[1].moments == 8 * ((plan.parameters + 1) // 2)
    assert set(tensors()) <= before  # nothing is allocated


def test_a_clip_that_is_there_is_counted_without_its_weights(tmp_path: Path) -> None:
    clip = load_train_config(CONFIGS / "clip.yaml").model
    description = tmp_path / "clip" / EXPORT / CONFIG_NAME
    description.parent.mkdir(parents=True)
    description.write_text(json.dumps(describe_for_open_clip(clip)))
    config = load_train_config(CONFIGS / "prior.yaml", [f"clip={tmp_path / 'clip'}"])
    held = [*Clip(clip).parameters(), *Clip(clip).buffers()]
    assert make_plan(config, ALONE).frozen == sum(tensor.numel() for tensor in held)


def test_flops_are_those_of_the_products() -> None:
    """The toy is two matrices: each is multiplied once forward, and twice backward."""
    config = toy.toy_config(Path("none"), Path("none"))
    parts = outline(config, "fp32")
    assert flops_per_sample(config, parts) == 3 * 2 * (2 * toy.DIM * 24)


def test_days_follow_from_flops_and_the_peak() -> None:
    config = upsampler("train.samples=1000000")
    plan = make_plan(config, replace(ALONE, gpus=4, peak=1e-3))
    assert plan.days == pytest.approx(1e6 * plan.flops / (4 * 1e9 * 0.5) / 86400)


def test_a_gpu_keeps_no_matrices_of_attention() -> None:
    """With long captions they are most of what a CPU keeps."""
    more = ["model.context_length=256", "train.micro_batch=8", "train.precision=fp32"]
    more += ["model.layers=3"]  # of the last one token is answered for
    config = load_train_config(CONFIGS / "prior.yaml", more)
    cuda, cpu = (
        make_plan(config, replace(ALONE, kind=kind)).options[0].memory.activations
        for kind in ("cuda", "cpu")
    )
    matrices = 8 * 2 * 260**2 * 4  # samples x heads x tokens x tokens x bytes
    assert cpu - cuda > matrices


def test_what_does_not_fit_is_told() -> None:
    plan = make_plan(upsampler(), replace(ALONE, memory=20_000_000))
    fits = {option.engine: option.fits for option in plan.options}
    assert fits["local"]
    assert not fits["zero 3"]
    lines = describe(plan)
    assert any(line.startswith("zero 3") and "does not fit" in line for line in lines)


def test_sizes_are_read_as_people_write_them() -> None:
    assert [parse_bytes(text) for text in ("80GB", "24 GiB", "1.5tb", "1000")] == [
        80 * 10**9,
        24 * 2**30,
        15 * 10**11,
        1000,
    ]
    for text in ("", "eighty", "80XB", "-1GB", "1.2.3GB"):
        with pytest.raises(UserError, match="--memory: got"):
            parse_bytes(text)


def test_the_command(command: Callable[..., Popen[str]]) -> None:
    path = CONFIGS / "prior.yaml"
    out, _ = command("plan", path, "--gpus", 4, "--memory", "40GB", "--json").communicate()
    plan = json.loads(out)
    assert (plan["stage"], plan["hardware"]["gpus"]) == ("prior", 4)
    for option in plan["options"]:
        parts = {k: v for k, v in option["memory"].items() if k != "total"}
        largest = max(parts.pop("activations"), parts.pop("update"))
        assert option["memory"]["total"] == sum(parts.values()) + largest
    refused = command("plan", path, "--gpus", 400)
    assert "train.batch: got 32, expected >= 400, one per GPU" in refused.communicate()[1]
    assert refused.returncode == 2
